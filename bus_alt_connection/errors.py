# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""A failure's cause, its level in the log and its remedy, as data; log, health route and doctor share them.

Contract: words choose the remedy and the level, never what the addon does. An error at connect has no code, only a
text, in the server's language; an unknown text gets a remedy that works for any.
"""

import logging
import re
from typing import Any, NamedTuple, Optional, Tuple


class Cause(NamedTuple):
    name: str  # for machines
    level: int  # of logging
    remedy: str  # without addresses and secrets: the health route shows it


def permanent(name: str, remedy: str) -> Cause:
    """Make a cause that only a person can remove."""
    return Cause(name, logging.ERROR, remedy)


def transient(name: str, remedy: str) -> Cause:
    """Make a cause that may end by itself."""
    return Cause(name, logging.WARNING, remedy)


ADDRESS = "imdispatcher_db_host and imdispatcher_db_port"

# (words in the reason, in lower case; what they mean). The first that fits counts: a lost connection with TLS is
# reported in words of TLS, so losses stand before TLS.
CAUSES = (
    (("wrong setting",), permanent("setting", "Correct the setting. There is no direct connection until then.")),
    (("password file",), permanent("password file", "Set imdispatcher_db_password_file to a file that Odoo may read.")),
    (("could not access status of transaction",),
     transient("postgresql bug", "This is a bug of PostgreSQL in LISTEN, which the addon works around: install its"
               " minor release of November 2025 or a later one.")),
    (("in the notify queue",),
     permanent("notify queue", "The NOTIFY queue is full, because a session that LISTENs does not read from it:"
               " odoo bus_doctor names it.")),
    (("authentication failed", "no password supplied", "wrong password type", "login rejected"),
     permanent("credentials", "Set imdispatcher_db_user and imdispatcher_db_password to an account that may log in"
               " there directly.")),
    (("pg_hba.conf",),
     permanent("pg_hba", "Add a line for this host, user and database to the server's pg_hba.conf, or set"
               " imdispatcher_db_sslmode as that file demands.")),
    (("unsupported startup parameter",),
     permanent("startup parameter", "Add that parameter, and options, to ignore_startup_parameters in pgbouncer.ini;"
               " run PgBouncer 1.26.1 or later.")),
    (("query_wait_timeout",),
     transient("query wait", "PgBouncer had no server connection in time. If this lasts, raise its default_pool_size"
               " or query_wait_timeout.")),
    (("standby", "during recovery", "system is not accepting connections"),
     Cause("standby", logging.ERROR, f"Set {ADDRESS} to the primary, or name all hosts with commas.")),
    (("could not resolve", "could not translate host name"),
     Cause("name", logging.ERROR, "Set imdispatcher_db_host to a name that this machine can resolve.")),
    (("idle-session timeout", "statement timeout", "lock timeout"),
     transient("server timeout", "If this lasts: which of PostgreSQL's timeouts (idle_session_timeout,"
               " statement_timeout, lock_timeout) is set for the role, or what holds a lock?")),
    (("starting up", "shutting down", "recovery mode", "not yet accepting", "terminating connection",
      "closed the connection", "connection has been closed", "eof", "ssl syscall error", "broken pipe",
      "bad record mac", "server_login_retry", "server login has been failing"),
     transient("restart", "Nothing to do if PostgreSQL is being restarted. Behind PgBouncer, server_login_retry = 1"
               " in pgbouncer.ini shortens the pause after it.")),
    (("refused", "reset", "no answer in time", "not answer in time", "timeout", "timed out", "no route", "unreachable"),
     transient("unreachable", f"If this lasts: is PostgreSQL up, do {ADDRESS} lead to it, does a firewall let it"
               " through?")),
    (("certificate", "ssl", "tls"),
     permanent("tls", "Set imdispatcher_db_sslmode and imdispatcher_db_sslrootcert to what the server offers.")),
    (("too many connections", "too many clients", "connection slots", "no more connections allowed", "max_client_conn",
      "maxclientsinsessionmode", "max clients reached"),
     permanent("full", "The server or the pooler is full: raise its max_connections or max_client_conn (or the role's"
               " limit), or lower the pooler's pool size.")),
    (("role ", "no such user", "permission denied for database", "tenant or user not found"),
     permanent("role", "Set the user to a role that exists there, and GRANT CONNECT on that database to it.")),
    (("the listen was removed", "prepared statement"),
     transient("unlistened", "Something ran UNLISTEN or DISCARD ALL on the connection: is there a pooler in"
               " between?")),
    (("does not exist", "no such database", "bouncer config error", "route"),
     permanent("database", "Set imdispatcher_db_name to the database that NOTIFYs reach (Odoo uses postgres); a pooler"
               " has to know it.")),
    (("silent",), transient("silent", "If this lasts: does a firewall or a proxy in between drop what is sent?")),
)
# Where several endpoints are named, one of them should be the primary.
NO_PRIMARY = transient("standby", "If this lasts: is none of the hosts a primary?")
UNKNOWN = transient("unknown", "If this lasts, look up the server's message, and check the settings imdispatcher_db_*.")

# Why NOTIFYs do not arrive on a connection that is open.
OTHER_SERVER = permanent("other server", f"Set {ADDRESS} to the server behind Odoo's own db_host.")
OTHER_DATABASE = permanent("other database", "Set imdispatcher_db_name to the database that NOTIFYs reach.")
POOLER = permanent("pooler", f"Set {ADDRESS} to PostgreSQL itself.")
UNDELIVERED = permanent("undelivered", "Is the server overloaded?")
REFUSED = permanent("notify refused", "Let Odoo's role run that function for channels that begin with"
                    " bus_alt_connection_, or name another function in ODOO_NOTIFY_FUNCTION.")
UNVERIFIED = tuple(cause.name for cause in (OTHER_SERVER, OTHER_DATABASE, POOLER, UNDELIVERED, REFUSED))

# How the SQLSTATE of a statement begins that the server would refuse for ever: data that does not fit, what the
# function itself raises, what it lacks or may not do. Every other error is the path's: gone, full, starting up.
REFUSALS = ("0A", "21", "22", "23", "38", "39", "42", "P0")


class ConnectionLost(Exception):
    """There is no connection, or it is of no use.

    :ivar reason: one line without secrets
    :ivar endpoint: where it goes, for people
    :ivar cause: a ``Cause``; by the words of the reason if not given
    """

    def __init__(self, reason: str, endpoint: Optional[str] = None, cause: Optional[Cause] = None) -> None:
        super().__init__(reason)
        self.reason, self.endpoint = reason, endpoint
        self.cause = cause or cause_of(reason)

    @property
    def refused(self) -> bool:
        """Whether the server refuses the statement itself, and would do so again."""
        return (getattr(self.__cause__, "pgcode", None) or "").startswith(REFUSALS)

    @property
    def broken(self) -> bool:
        """Whether the connection is gone, or leads to a standby: a new one may do better at once."""
        code = getattr(self.__cause__, "pgcode", None) or "08"
        return code.startswith(("08", "25", "57P"))

    def __str__(self) -> str:
        return f"{self.endpoint}: {self.reason}" if self.endpoint else self.reason


class TimedOut(ConnectionLost):
    """There was no answer in time. The other side may still be busy with it: nothing is repeated at once."""

    broken = False


def cause_of(reason: str) -> Cause:
    """Return the cause that a reason of PostgreSQL's, libpq's or a pooler's names."""
    # What is quoted is a name (of a host, a role, a database), whose words mean nothing.
    lowered = re.sub(r'"[^"]*"', '""', reason).lower()
    for words, cause in CAUSES:
        if any(word in lowered for word in words):
            return cause
    return UNKNOWN


def undelivered(endpoint: str, listening: Tuple[int, str], notifying: Tuple[int, str], pooler: bool) -> ConnectionLost:
    """Say which misconfiguration keeps NOTIFYs from a connection that LISTENs.

    :param endpoint: where it LISTENs, for people
    :param listening: (when the server started, database) where it LISTENs
    :param notifying: the same of where NOTIFYs go
    :param pooler: whether it LISTENs through a pooler
    """
    cause, text = UNDELIVERED, f"a NOTIFY through Odoo's own db_host did not arrive on {endpoint} in time"
    if listening[0] != notifying[0]:
        cause, text = OTHER_SERVER, f"it listens on {endpoint}, which is another server than the one NOTIFYs reach"
    elif listening[1] != notifying[1]:
        # The names stand in the text, and not in the remedy, which the health route shows to everyone.
        text = f'it listens in database "{listening[1]}" ({endpoint}), but NOTIFYs go to "{notifying[1]}"'
        cause, text = OTHER_DATABASE, f"{text} (imdispatcher_db_name = {notifying[1]})"
    elif pooler:
        cause, text = POOLER, f"{endpoint} is a pooler that shares its connections, where a LISTEN is lost"
    return ConnectionLost(text, cause=cause)


def one_line(error: Any) -> str:
    """Return an error's first line; libpq adds hints below. No message of libpq's names a password."""
    # The server's message in another encoding than the connection's: in LATIN1 every byte is a letter.
    encoded = error.object if isinstance(error, UnicodeDecodeError) else None
    text = str(error) if encoded is None else encoded.decode("latin-1")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
