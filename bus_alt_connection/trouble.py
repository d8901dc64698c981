# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Says what is wrong: one line, with the remedy, each kind at most once a minute.

libpq gives no error code for a connection that failed, only text; so the kind of a trouble is
found by words in it. A text that is not known gets a general remedy.
"""

import logging
import time

_logger = logging.getLogger(__name__)

ADDRESS = "imdispatcher_db_host and imdispatcher_db_port"

# A name, words in the reason -> (level, what to do). The first that fits counts.
REMEDIES = (
    (
        "credentials",
        ("password authentication failed", "no password supplied", "authentication failed"),
        (logging.ERROR, "Set imdispatcher_db_user and imdispatcher_db_password to an account"
         " that may log in there directly."),
    ),
    (
        "pg_hba",
        ("pg_hba.conf",),
        (logging.ERROR, "Add a line for this host, user and database to the server's pg_hba.conf,"
         " or set imdispatcher_db_sslmode as that file wants it."),
    ),
    (
        "tls",
        ("certificate", "ssl", "tls"),
        (logging.ERROR, "Set imdispatcher_db_sslmode and imdispatcher_db_sslrootcert to what the"
         " server offers."),
    ),
    (
        "full",
        ("too many connections", "too many clients", "connection slots"),
        (logging.ERROR, "The server is full: raise its max_connections (or the role's limit), or"
         " lower the pooler's pool size."),
    ),
    (
        "role",
        ("role ", "permission denied for database"),
        (logging.ERROR, "Set imdispatcher_db_user to a role that exists and may connect there."),
    ),
    (
        "database",
        ("does not exist",),
        (logging.ERROR, "Set imdispatcher_db_name to the database that NOTIFYs reach (Odoo uses"
         " \"postgres\")."),
    ),
    (
        "standby",
        ("recovery mode", "standby"),
        (logging.ERROR, "Set %s to the primary, or name all hosts with commas." % ADDRESS),
    ),
    (
        "name",
        ("could not resolve", "could not translate host name"),
        (logging.ERROR, "Set imdispatcher_db_host to a name that this machine can resolve."),
    ),
    (
        "password file",
        ("password file",),
        (logging.ERROR, "Set imdispatcher_db_password_file to a file that Odoo may read."),
    ),
    (
        "restart",
        ("starting up", "shutting down", "terminating connection", "closed the connection"),
        (logging.WARNING, "Nothing to do if PostgreSQL is being restarted."),
    ),
    (
        "unreachable",
        ("connection refused", "connection reset", "no answer in time", "timeout", "timed out", "no route", "silent"),
        (logging.WARNING, "If this lasts: is PostgreSQL up, does %s lead to it, does a firewall"
         " let it through?" % ADDRESS),
    ),
)
OTHERWISE = ("unknown", (logging.WARNING, "If this lasts, check %s." % ADDRESS))

REPEAT_SECONDS = 60


def explain(reason):
    """:return: (logging level, remedy) for a reason of PostgreSQL's or libpq's"""
    return _found(reason)[1]


def cause(reason):
    """:return: str, the name of the row of ``REMEDIES`` that fits a reason, for machines"""
    return _found(reason)[0]


def _found(reason):
    lowered = reason.lower()
    for name, words, answer in REMEDIES:
        if any(word in lowered for word in words):
            return name, answer
    return OTHERWISE


class Trouble(object):
    """The troubles of one listener.

    :param str name: the listener's name
    :ivar current: the trouble that lasts, as one line, or None
    :ivar cause: its name, and ``remedy``: what to do; both without addresses, or None
    """

    def __init__(self, name):
        self.name = name
        self.current = self.cause = self.remedy = None
        self.malformed = 0  # payloads, in all
        self._reported = {}  # kind -> time.monotonic() of its latest line
        self._malformed_before = 0

    def _due(self, kind):
        now = time.monotonic()
        if now - self._reported.get(kind, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        self._reported[kind] = now
        return True

    def lost(self, exc, had_one):
        """There is no connection; it is tried again.

        :param exc: ``link.Lost`` or ``settings.Invalid``
        :param bool had_one: whether there was one until now
        """
        reason = getattr(exc, "reason", str(exc))  # without the address, whose words mean nothing
        level, remedy = explain(reason)
        self.cause, self.remedy = cause(reason), remedy
        verb = "lost its connection to" if had_one else "cannot connect to"
        self.current = "%s %s. %s" % (verb, exc, remedy)
        if self._due(remedy):
            _logger.log(
                level,
                "The %s listener %s %s",
                self.name,
                self.current,
                "It is tried again at once." if had_one else "It is tried again all the time.",
            )

    def degraded(self, seconds):
        """While there is no connection the slow clock works."""
        if self._due("degraded"):
            _logger.warning(
                "Degraded: until the %s listener is back there is news every %g s only.",
                self.name,
                seconds,
            )

    def misrouted(self, diagnosis, explanation):
        """The connection is there, but notifications do not arrive on it.

        :param diagnosis: a ``diagnosis.Diagnosis``
        """
        self.current = explanation
        self.cause, self.remedy = diagnosis.cause, diagnosis.remedy
        if self._due("misrouted"):
            _logger.error("The %s listener hears nothing: %s", self.name, explanation)

    def over(self):
        """All is well again."""
        self.current = self.cause = self.remedy = None

    def bad_payload(self, channel, payload):
        """A notification that upstream's loop would fail on was left out."""
        self.malformed += 1
        if self._due("malformed"):
            since, self._malformed_before = (
                self.malformed - self._malformed_before,
                self.malformed,
            )
            _logger.warning(
                "Left out %d malformed notification(s) on %s since the last such line, the latest:"
                " %.80s. Someone with access to the database sends them; the bus goes on.",
                since,
                channel,
                ascii(payload[:80]),
            )

    def defect(self, text):
        """An error that nobody expected, with its traceback."""
        if self._due(text):
            _logger.exception(text, self.name)
