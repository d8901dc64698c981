"""What a failure means: a text of PostgreSQL's, PgBouncer's or libpq's → its cause, which names level and remedy.

The texts are as those programs write them.
"""
import logging

import psycopg2
import pytest

from bus_alt_connection import errors
from bus_alt_connection.errors import ConnectionLost

TEXTS = {
    "setting": ["wrong setting: environment variable IMDISPATCHER_DB_SSLMODE is 'verify_full', so there is no direct"
                " connection: it has to be one of disable, allow, prefer, require, verify-ca, verify-full"],
    "password file": ["the password file /run/ssl/password cannot be read: [Errno 2] No such file or directory:"
                      " '/run/ssl/password'"],
    "postgresql bug": ["ERROR:  could not access status of transaction 754"],
    "notify queue": ["ERROR:  too many notifications in the NOTIFY queue"],
    "credentials": ['FATAL:  password authentication failed for user "odoo"', "fe_sendauth: no password supplied",
                    "FATAL:  SASL authentication failed", 'FATAL:  Peer authentication failed for user "odoo"'],
    "pg_hba": ['FATAL:  no pg_hba.conf entry for host "192.0.2.20", user "odoo", database "postgres", SSL off',
               'FATAL:  pg_hba.conf rejects connection for host "192.0.2.20", user "odoo", database "postgres", no'
               " encryption"],
    "tls": ["server does not support SSL, but SSL was required", "SSL error: certificate verify failed",
            'server certificate for "pg.example" does not match host name "db.example"',
            'root certificate file "/etc/odoo/ca.crt" does not exist'],
    "full": ["FATAL:  sorry, too many clients already", 'FATAL:  too many connections for role "odoo_listener"',
             'FATAL:  too many connections for database "postgres"',
             "FATAL:  remaining connection slots are reserved for non-replication superuser connections",
             'FATAL:  remaining connection slots are reserved for roles with privileges of the'
             ' "pg_use_reserved_connections" role'],
    "role": ['FATAL:  role "odoo_listener" does not exist', 'FATAL:  role "odoo_listener" is not permitted to log in',
             'FATAL:  permission denied for database "postgres"'],
    "database": ['FATAL:  database "nowhere" does not exist', "FATAL: no such database: nowhere"],
    "standby": ["the server is a standby (in recovery mode), where LISTEN is impossible",
                "ERROR:  cannot execute LISTEN during recovery",
                "FATAL:  the database system is not accepting connections"],
    "name": ["could not resolve the host name: [Errno -2] Name or service not known",
             "could not resolve the host name: no answer in time",
             'could not translate host name "pg.example" to address: Name or service not known'],
    "unlistened": ["the LISTEN was removed (imbus)"],
    "startup parameter": ["FATAL:  unsupported startup parameter: geqo",
                          "FATAL:  unsupported startup parameter in options: geqo"],
    "query wait": ["FATAL:  query_wait_timeout"],
    "server timeout": ["FATAL:  terminating connection due to idle-session timeout",
                       "ERROR:  canceling statement due to statement timeout",
                       "ERROR:  canceling statement due to lock timeout"],
    "restart": ["FATAL:  server login has been failing, try again later (server_login_retry)",
                "FATAL:  the database system is starting up", "FATAL:  the database system is shutting down",
                "FATAL:  the database system is in recovery mode",
                "FATAL:  the database system is not yet accepting connections",
                "FATAL:  terminating connection due to administrator command",
                "server closed the connection unexpectedly",
                # of a connection with TLS: not everything that has these letters in it is TLS's fault
                "SSL connection has been closed unexpectedly", "SSL SYSCALL error: EOF detected",
                "SSL SYSCALL error: Connection reset by peer", "SSL error: unexpected eof while reading"],
    "silent": ["no heartbeat was answered within 5 s, the path is silent"],
    "unreachable": ["Connection refused", "could not connect to server: Connection refused",
                    'connection to server at "pg.example" (192.0.2.5), port 5432 failed: No route to host',
                    "could not receive data from server: Connection timed out", "no answer in time (timeout)",
                    "could not receive data from server: Connection reset by peer", "Network is unreachable"],
    "unknown": ["something that nobody has seen yet",
                # names mean nothing: of a host, a database, a role
                'connection to server at "db-ssl", port 5432 failed: what is this',
                'could not find "certificate does not exist", "pg_hba.conf" and "role "'],
}
# The causes that a person has to mend.
ERROR = {"setting", "password file", "notify queue", "credentials", "pg_hba", "tls", "full", "role", "database",
         "startup parameter", "standby", "name"}


@pytest.mark.parametrize("name, text", [(name, text) for name, texts in TEXTS.items() for text in texts])
def test_the_cause_of_a_text(name, text):
    cause = errors.cause_of(text)
    assert cause.name == name
    assert cause.level == (logging.ERROR if name in ERROR else logging.WARNING)


def test_each_cause_has_a_text_here():
    assert set(TEXTS) == {cause.name for _, cause in errors.CAUSES} | {errors.UNKNOWN.name}


def test_the_remedies_differ_and_are_sentences():
    causes = [cause for _, cause in errors.CAUSES]
    causes += [errors.UNKNOWN, errors.OTHER_SERVER, errors.OTHER_DATABASE, errors.POOLER, errors.UNDELIVERED,
               errors.REFUSED]
    remedies = {cause.remedy for cause in causes}
    assert len(remedies) == len({cause.name for cause in causes}) == len(causes)
    assert all(remedy.endswith((".", "?")) for remedy in remedies)


def test_case_does_not_matter():
    assert errors.cause_of("CONNECTION REFUSED") == errors.cause_of("connection refused")


def test_a_lost_connection_says_where_and_why():
    lost = ConnectionLost("Connection refused", "pg.example:5432/postgres as odoo")
    assert str(lost) == "pg.example:5432/postgres as odoo: Connection refused"
    assert lost.cause.name == "unreachable"
    assert str(ConnectionLost("Connection refused")) == "Connection refused"


def test_the_endpoints_words_mean_nothing():
    assert ConnectionLost("what is this", "ssl.example:5432/certificate as pg_hba.conf").cause is errors.UNKNOWN


def test_a_cause_that_is_given_counts():
    assert ConnectionLost("Connection refused", cause=errors.POOLER).cause is errors.POOLER


HERE, THERE = (1, "postgres"), (2, "postgres")


@pytest.mark.parametrize("listening, notifying, pooler, name, words", [
    (HERE, THERE, False, "other server", "another server"),
    (HERE, THERE, True, "other server", "another server"),
    ((1, "demo"), (1, "signals"), False, "other database", 'database "demo" (pg as odoo), but NOTIFYs go to "signals"'),
    ((1, "demo"), (1, "signals"), True, "other database", '"signals"'),
    (HERE, HERE, True, "pooler", "is a pooler"),
    (HERE, HERE, False, "undelivered", "in time"),
])
def test_why_a_notify_did_not_arrive(listening, notifying, pooler, name, words):
    lost = errors.undelivered("pg as odoo", listening, notifying, pooler)
    assert lost.cause.name == name
    assert words in lost.reason and "pg as odoo" in lost.reason
    assert lost.cause.level == logging.ERROR


def test_the_right_database_is_named():
    lost = errors.undelivered("pg", (1, "demo"), (1, "signals"), False)
    assert "imdispatcher_db_name = signals" in lost.reason
    assert "signals" not in lost.cause.remedy       # the health route shows it to everyone


@pytest.mark.parametrize("text, line", [
    ("server closed the connection unexpectedly\n\tThis probably means the server terminated abnormally\n",
     "server closed the connection unexpectedly"),
    ("\n\n  FATAL:  it is so.\n", "FATAL:  it is so"),
    ("", "ValueError"),
])
def test_one_line_of_an_error(text, line):
    assert errors.one_line(ValueError(text)) == line


class Answer(psycopg2.Error):
    """psycopg2 lets nobody set `pgcode`; the real one is in tests/stack/test_notifier.py."""

    def __init__(self, state):
        super().__init__(state)
        self.state = state

    pgcode = property(lambda self: self.state)


@pytest.mark.parametrize("state, refused, broken", [
    ("22023", True, False),     # payload string too long
    ("42883", True, False),     # no such function
    ("42501", True, False),     # not allowed to call it
    ("P0001", True, False),     # raised by the function
    ("08P01", False, True),     # PgBouncer
    ("57P01", False, True),     # terminated by an administrator
    ("25006", False, True),     # a standby
    ("53300", False, False),    # too many connections
    ("54000", False, False),    # too many notifications in the queue
    ("57014", False, False),    # a time limit of the server's
    (None, False, True),        # no answer of a server at all
])
def test_what_comes_of_an_answer_is_decided_by_its_code(state, refused, broken):
    lost = ConnectionLost("in whatever language")
    lost.__cause__ = Answer(state)
    assert (lost.refused, lost.broken) == (refused, broken)


def test_an_answer_that_is_late_may_still_come():
    """So nothing is sent a second time at once, whatever it was that was waited for."""
    assert not errors.TimedOut("no answer in time (timeout)").broken
    assert ConnectionLost("Connection refused").broken and not ConnectionLost("payload string too long").refused
