"""Which cursor a caller gets is decided at its first statement.

The statements are those of Odoo's own source, series by series; that the cursors do what they should on a real server
is in inside/test_routing.py.
"""
import psycopg2
import pytest
from psycopg2 import sql

from bus_alt_connection import notifier, routing
from bus_alt_connection.routing import LISTEN, NOTIFY, SystemCursor


class SQL:
    """Odoo's object of this name, 17 on, as far as a cursor reads it."""

    def __init__(self, code, *params):
        self.code, self.params = code, list(params)


def call_of(name, channel):
    """As 15 to 17 write it."""
    return sql.SQL("SELECT {}('" + channel + "', %s)").format(sql.Identifier(name))


NOTIFIES = [
    # 12 to 15
    ("notify imbus, %s", ('[["a"]]',)),
    ("NOTIFY cron_trigger, %s", ["demo"]),
    # 15 to 17
    (call_of("pg_notify", "imbus"), ("[]",)), (call_of("pg_notify", "cron_trigger"), ["demo"]),
    (call_of('od"d', "imbus"), ("[]",)),
    # 17 on
    (SQL("SELECT \"pg_notify\"('imbus', %s)", "[]"), None),
    (SQL("SELECT \"my_notify\"('cron_trigger', %s)", "demo"), None),
    # as people write it
    ("  select pg_notify( 'imbus' , %s ) ; ", ("[]",)), ("Notify IMBUS, %s;", ("[]",)),
]
OTHERS = [
    ("SELECT 1", None), ("listen imbus", None), ("NOTIFY imbus", None), ("NOTIFY imbus, '[]'", None),
    ("NOTIFY other, %s", ("x",)), ('NOTIFY "IMBUS", %s', ("x",)), ("SELECT pg_notify('other', %s)", ("x",)),
    ("SELECT pg_notify('imbus', %s), 1", ("x",)), ("SELECT pg_notify('imbus', %s); DROP TABLE bus_bus", ("x",)),
    ("SELECT pg_notify('imbus', %(payload)s)", {"payload": "x"}), (b"notify imbus, %s", ("x",)),
    (sql.Literal("notify imbus, %s"), ("x",)),
    (sql.SQL("SELECT pg_notify({}, %s)").format(sql.Literal("imbus")), ("x",)), (SQL("SELECT 1"), None), (None, None),
]


@pytest.mark.parametrize("query, right", [(query, True) for query, _ in NOTIFIES] + [(query, False) for query, _ in
                                                                                      OTHERS])
def test_what_odoo_sends_is_a_notify_and_nothing_else(query, right):
    assert bool(NOTIFY.match(routing._text(query))) == right


@pytest.mark.parametrize("text, channel", [
    ("listen imbus", "imbus"), ("LISTEN cron_trigger", "cron_trigger"), (' Listen "imbus" ; ', "imbus"),
    ("listen", None), ("listen a, b", None), ("unlisten imbus", None), ("notify imbus, %s", None),
    ("listen imbus; DROP TABLE bus_bus", None),
])
def test_a_listen(text, channel):
    found = LISTEN.match(text)
    assert (found and found.group(1)) == channel


# -- the cursor --------------------------------------------------------------------------------------------------------

class Own:
    """Odoo's own cursor: what it was told is in `did`."""

    def __init__(self):
        self.did, self.fails = [], None

    def execute(self, query, params=None):
        self.did.append((query, params))
        if self.fails is not None:
            raise self.fails

    def fetchone(self):
        return (7,)

    def commit(self):
        self.did.append("commit")

    def rollback(self):
        self.did.append("rollback")

    def close(self):
        self.did.append("close")


class Sender:
    def __init__(self):
        self.sent = []
        self.send = self.sent.append


@pytest.fixture
def sender(monkeypatch):
    sender = Sender()
    monkeypatch.setattr(notifier, "get_notifier", lambda: sender)
    return sender


@pytest.fixture
def cursor(sender):
    """`cursor(subscribers=None, keep_notify=True)`: its own one is `.made[0]` once there is one."""
    def make(subscribers=None, keep_notify=True):
        made = []

        def own():
            made.append(Own())
            return made[-1]
        found = SystemCursor(own, subscribers, keep_notify)
        found.made = made
        return found
    return make


@pytest.mark.parametrize("query, params", NOTIFIES)
def test_a_notify_leaves_with_the_commit_as_it_was_given(cursor, sender, query, params):
    with cursor() as cr:
        cr.execute(query, params)
        assert not sender.sent
    ((statement, parameters),), = sender.sent
    assert statement is getattr(query, "code", query)
    assert parameters == tuple(params or query.params)
    assert not cr.made and cr.closed


@pytest.mark.parametrize("query, params", OTHERS)
def test_anything_else_is_odoos_own_cursors(cursor, sender, query, params):
    with cursor() as cr:
        cr.execute(query, params)
        assert cr.fetchone() == (7,)
    assert cr.made[0].did == [(query, params), "commit", "close"] and not sender.sent


def test_the_order_of_one_transaction_is_kept(cursor, sender):
    with cursor() as cr:
        cr.execute("notify imbus, %s", ("1",))
        cr.execute("SELECT 1")
        cr.execute("notify imbus, %s", ("2",))
    assert [did for did in cr.made[0].did if did[0] != "SELECT 1"] == [
        ("notify imbus, %s", ("1",)), ("notify imbus, %s", ("2",)), "commit", "close"]
    assert not sender.sent


def test_without_the_setting_a_notify_is_odoos_own_cursors(cursor, sender):
    with cursor(keep_notify=False) as cr:
        cr.execute("notify imbus, %s", ("1",))
    assert len(cr.made) == 1 and not sender.sent


class Broken(Exception):
    pass


def test_what_is_rolled_back_does_not_leave(cursor, sender):
    cr = cursor()
    cr.execute("notify imbus, %s", ("1",))
    cr.rollback()
    cr.execute("notify imbus, %s", ("2",))
    cr.commit()
    cr.commit()
    cr.execute("notify imbus, %s", ("3",))
    cr.close()
    cr.close()
    assert sender.sent == [[("notify imbus, %s", ("2",))]]
    with pytest.raises(Broken), cursor() as cr:
        cr.execute("notify imbus, %s", ("4",))
        raise Broken()
    assert len(sender.sent) == 1 and cr.closed


def test_a_refused_statement_is_the_callers_and_closes_it(cursor, sender):
    def refuse(statements):
        raise Broken()
    sender.send = refuse
    with pytest.raises(Broken), cursor() as cr:
        cr.execute("notify imbus, %s", ("1",))
    assert cr.closed
    with pytest.raises(Broken), cursor() as cr:
        cr.execute("SELECT 1")
        cr.made[0].fails = Broken()
        cr.execute("notify imbus, %s", ("1",))
    assert cr.made[0].did[-1] == "close"


def test_a_closed_one_says_what_psycopg2_says(cursor):
    cr = cursor()
    cr.close()
    for query in ("SELECT 1", "notify imbus, %s"):
        with pytest.raises(psycopg2.InterfaceError):
            cr.execute(query, ("x",))


@pytest.mark.parametrize("other", ["SELECT pg_is_in_recovery()", "select pg_is_in_recovery();"])
def test_a_loop_is_told_that_the_server_is_no_standby(cursor, other):
    """The listener looks for a primary itself; who does not listen gets the server's answer."""
    listens = cursor(subscribers=object())
    listens.execute(other)
    assert listens.fetchone() == (False,) and not listens.made
    listens.execute("SELECT 7")
    assert listens.fetchone() == (7,)
    asks = cursor()
    asks.execute(other)
    assert asks.fetchone() == (7,)


# -- whose a cursor is -------------------------------------------------------------------------------------------------

def test_a_mark_is_of_one_thread_and_ends_with_its_block():
    def marked():
        return getattr(routing._thread, "subscribers", None)
    with pytest.raises(Broken), routing.listening_for("outer"):
        with routing.listening_for("inner"):
            assert marked() == "inner"
        assert marked() == "outer"
        raise Broken()
    assert marked() is None


def test_a_loop_that_fails_is_started_again_until_the_end(clock, caplog):
    class Stop:
        def is_set(self):
            return len(turns) == 5
    turns = []

    def loop(self):
        turns.append(self)
        raise Broken("no more of it")
    restarting = routing.restart(loop, "The loop", Stop())
    with pytest.raises(Broken):
        restarting("self")
    assert turns == ["self"] * 5 and clock.slept[0] == 0 and 0 < max(clock.slept) <= 0.6
    assert caplog.messages == ["The loop failed (no more of it) and goes on."] * 4
