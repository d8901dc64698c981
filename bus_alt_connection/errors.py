# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What a failure means: reason → cause, level, remedy. Listener, notifier, log, health and doctor share it.

libpq gives no error code for a connection that failed, only text; so the cause is found by words
in it. A text that is not known gets a general remedy.
"""

import logging
import re
from typing import NamedTuple, Optional, Tuple


class Cause(NamedTuple):
    name: str  # for machines
    level: int  # of logging
    slow: bool  # whether only a person can mend it: retry slowly
    remedy: str  # without addresses and secrets: the health route shows it


def _person(name: str, remedy: str) -> Cause:
    """A cause that only a person can mend."""
    return Cause(name, logging.ERROR, True, remedy)


def _passing(name: str, remedy: str) -> Cause:
    """A cause that may well pass by itself."""
    return Cause(name, logging.WARNING, False, remedy)


ADDRESS = "imdispatcher_db_host and imdispatcher_db_port"

# Words in the reason, in lower case, and what they mean. The first that fits counts: a connection
# with TLS that is lost says so in words of TLS.
CAUSES = (
    (
        ("wrong setting",),
        _person("setting", "Correct the setting. There is no direct connection until then."),
    ),
    (
        ("password file",),
        _person("password file", "Set imdispatcher_db_password_file to a file that Odoo may read."),
    ),
    (
        ("could not access status of transaction",),
        _person("postgresql bug", "This is a bug of PostgreSQL in LISTEN: install its minor release of"
                " November 2025 or a later one. Until then a restart of PostgreSQL helps."),
    ),
    (
        ("in the notify queue",),
        _person("notify queue", "The NOTIFY queue is full, since a session that LISTENs takes nothing from"
                " it: odoo bus_doctor names it."),
    ),
    (
        ("authentication failed", "no password supplied"),
        _person("credentials", "Set imdispatcher_db_user and imdispatcher_db_password to an account"
                " that may log in there directly."),
    ),
    (
        ("pg_hba.conf",),
        _person("pg_hba", "Add a line for this host, user and database to the server's pg_hba.conf, or"
                " set imdispatcher_db_sslmode as that file wants it."),
    ),
    (
        ("unsupported startup parameter",),
        _person("startup parameter", "Add that parameter to ignore_startup_parameters in pgbouncer.ini."),
    ),
    (
        ("query_wait_timeout",),
        _passing("query wait", "PgBouncer had no server connection in time. If this lasts, raise its"
                 " default_pool_size or query_wait_timeout."),
    ),
    (
        ("standby", "during recovery", "system is not accepting connections"),
        Cause("standby", logging.ERROR, False, f"Set {ADDRESS} to the primary, or name all hosts with"
              " commas."),
    ),
    (
        ("could not resolve", "could not translate host name"),
        Cause("name", logging.ERROR, False, "Set imdispatcher_db_host to a name that this machine can"
              " resolve."),
    ),
    (
        ("starting up", "shutting down", "recovery mode", "not yet accepting", "terminating connection",
         "closed the connection", "connection has been closed", "eof"),
        _passing("restart", "Nothing to do if PostgreSQL is being restarted."),
    ),
    (
        ("refused", "reset", "no answer in time", "timeout", "timed out", "no route", "unreachable"),
        _passing("unreachable", f"If this lasts: is PostgreSQL up, do {ADDRESS} lead to it, does a"
                 " firewall let it through?"),
    ),
    (
        ("certificate", "ssl", "tls"),
        _person("tls", "Set imdispatcher_db_sslmode and imdispatcher_db_sslrootcert to what the server"
                " offers."),
    ),
    (
        ("too many connections", "too many clients", "connection slots"),
        _person("full", "The server is full: raise its max_connections (or the role's limit), or lower"
                " the pooler's pool size."),
    ),
    (
        ("role ", "permission denied for database"),
        _person("role", "Set imdispatcher_db_user to a role that exists and may connect there."),
    ),
    (
        ("the listen was removed", "prepared statement"),
        _passing("unlistened", "Something ran UNLISTEN or DISCARD ALL on the connection: is there"
                 " a pooler in between?"),
    ),
    (
        ("does not exist", "no such database"),
        _person("database", "Set imdispatcher_db_name to the database that NOTIFYs reach (Odoo uses"
                " postgres)."),
    ),
    (
        ("server_login_retry",),
        _passing("server login", "PgBouncer waits before it logs in to PostgreSQL again: set"
                 " server_login_retry = 1 in pgbouncer.ini."),
    ),
    (
        ("silent",),
        _passing("silent", "If this lasts: does a firewall or a proxy in between drop what is sent?"),
    ),
)
# The same where several hosts are named, one of which is to be the primary.
NO_PRIMARY = _passing("standby", "If this lasts: is none of the hosts a primary?")
UNKNOWN = _passing("unknown", f"If this lasts, check {ADDRESS}.")

# Why NOTIFYs do not arrive on a connection that is there.
OTHER_SERVER = _person("other server", f"Set {ADDRESS} to the server behind Odoo's own db_host.")
OTHER_DATABASE = _person("other database", "Set imdispatcher_db_name to the database that NOTIFYs reach.")
POOLER = _person("pooler", f"Set {ADDRESS} to PostgreSQL itself.")
UNDELIVERED = _person("undelivered", "Is the server overloaded?")
REFUSED = _person("notify refused", "Let Odoo's role run that function, or name another in ODOO_NOTIFY_FUNCTION.")


class ConnectionLost(Exception):
    """There is no connection, or it is of no use.

    :param reason: one line without secrets
    :param endpoint: where it goes, for people
    :param cause: if it is not to be found by words in the reason
    """

    def __init__(
        self, reason: str, endpoint: Optional[str] = None, cause: Optional[Cause] = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.endpoint = endpoint
        self.cause = cause or cause_of(reason)

    @property
    def refused(self) -> bool:
        """Whether the server took a statement and refused it: a right, or what it names, is missing."""
        return (getattr(self.__cause__, "pgcode", None) or "").startswith("42")

    def __str__(self) -> str:
        return f"{self.endpoint}: {self.reason}" if self.endpoint else self.reason


def cause_of(reason: str) -> Cause:
    """The cause that a reason of PostgreSQL's or libpq's names."""
    # What is quoted is a name (of a host, a role, a database), whose words mean nothing.
    lowered = re.sub(r'"[^"]*"', '""', reason).lower()
    for words, cause in CAUSES:
        if any(word in lowered for word in words):
            return cause
    return UNKNOWN


def undelivered(
    endpoint: str,
    listening: Tuple[int, str],
    notifying: Tuple[int, str],
    pooler: bool,
    seconds: float,
) -> ConnectionLost:
    """Which misconfiguration keeps the NOTIFYs from a connection that LISTENs.

    :param endpoint: where it LISTENs, for people
    :param listening: (when the server started, database) where it LISTENs
    :param notifying: the same of where NOTIFYs go
    :param pooler: whether it LISTENs through a pooler
    :param seconds: how long the NOTIFY was waited for
    """
    if listening[0] != notifying[0]:
        cause = OTHER_SERVER
        text = f"it listens on {endpoint}, which is another server than the one that NOTIFYs reach"
    elif listening[1] != notifying[1]:
        text = (
            f'it listens in database "{listening[1]}" ({endpoint}), but NOTIFYs go to'
            f' "{notifying[1]}"'
        )
        cause = OTHER_DATABASE._replace(remedy=f"Set imdispatcher_db_name = {notifying[1]}.")
    elif pooler:
        cause = POOLER
        text = f"{endpoint} is a pooler that shares its connections, where a LISTEN is lost"
    else:
        cause = UNDELIVERED
        text = (
            f"a NOTIFY through Odoo's own db_host did not arrive on {endpoint} within"
            f" {seconds:g} s, for no visible reason"
        )
    return ConnectionLost(text, cause=cause)


def one_line(error: Exception) -> str:
    """An error's first line; libpq adds hints below. No message of libpq's names a password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
