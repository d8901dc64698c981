"""The sending half without a server: what counts as a NOTIFY, who sends one, and what waits in which order.

The statements are those of Odoo's own source, series by series.
"""
import itertools
import time

import psycopg2
import pytest
from psycopg2 import sql

from bus_alt_connection import errors, notifier
from bus_alt_connection.notifier import Notification, Outbox, parse, sends, statement

BUS, CRON = ("pg_notify", "imbus"), ("pg_notify", "cron_trigger")


class SQL:
    """Odoo's object of this name, series 17 on, as far as a cursor reads it."""

    def __init__(self, code, *params):
        self.code, self.params = code, list(params)


@pytest.mark.parametrize("query, params, function, channel", [
    # 12 to 15
    ("notify imbus, %s", ('[["a"]]',), *BUS),
    ("NOTIFY cron_trigger, %s", ["demo"], *CRON),
    # 15 to 17
    (sql.SQL("SELECT {}('imbus', %s)").format(sql.Identifier("pg_notify")), ("[]",), '"pg_notify"', "imbus"),
    (sql.SQL("SELECT {}('cron_trigger', %s)").format(sql.Identifier("pg_notify")), ["d"],
     '"pg_notify"', "cron_trigger"),
    (sql.SQL("SELECT {}('imbus', %s)").format(sql.Identifier('od"d')), ("[]",), '"od""d"', "imbus"),
    # 17 on
    (SQL("SELECT \"pg_notify\"('imbus', %s)", "[]"), None, '"pg_notify"', "imbus"),
    (SQL("SELECT \"my_notify\"('cron_trigger', %s)", "demo"), None, '"my_notify"', "cron_trigger"),
    # as people write it
    ("  select pg_notify( 'imbus' , %s ) ; ", ("[]",), *BUS),
    ("Notify IMBUS, %s;", ("[]",), *BUS),
])
def test_what_odoo_sends_is_a_notify(query, params, function, channel):
    payload = (params or query.params)[0]
    assert parse(query, params) == Notification(function, channel, payload)


@pytest.mark.parametrize("query, params", [
    ("SELECT 1", None),
    ("listen imbus", None),
    ("NOTIFY imbus", None),
    ("NOTIFY imbus, '[]'", None),
    ("NOTIFY other, %s", ("x",)),
    ('NOTIFY "IMBUS", %s', ("x",)),
    ("SELECT pg_notify('IMBUS', %s)", ("x",)),      # another channel: in quotes the case counts
    ("SELECT pg_notify('imbus', %s), 1", ("x",)),
    ("SELECT pg_notify('imbus', %s); DROP TABLE bus_bus", ("x",)),
    ("SELECT pg_notify('imbus', %(payload)s)", {"payload": "x"}),
    ("notify imbus, %s", None),
    ("notify imbus, %s", ("x", "y")),
    ("notify imbus, %s", (5,)),
    (b"notify imbus, %s", ("x",)),
    (sql.Literal("notify imbus, %s"), ("x",)),
    (sql.SQL("SELECT pg_notify({}, %s)").format(sql.Literal("imbus")), ("x",)),
    (SQL("SELECT 1"), None),
    (None, None),
])
def test_nothing_else_is(query, params):
    assert parse(query, params) is None


def of_14(cr, channels):
    cr.execute("notify imbus, %s", (channels,))


def of_16(cr, function, channels):
    if function:
        query = sql.SQL("SELECT {}('imbus', %s)").format(sql.Identifier(function))
    else:
        query = "NOTIFY imbus, %s"
    cr.execute(query, (channels,))


def of_19(cr, function, payloads):
    for payload in payloads:
        cr.execute(SQL("SELECT %s('imbus', %s)", function, payload))


def of_cron_15(cr):
    cr.execute("NOTIFY cron_trigger, %s", [cr.dbname])


def of_cron_19(cr, function):
    cr.execute(SQL("SELECT %s('cron_trigger', %s)", function, cr.dbname))


def test_who_sends_is_known_by_its_code():
    def outer():
        def inner(cr):
            cr.execute("notify imbus, %s", ("x",))
        return inner
    for function in (of_14, of_16, of_19, of_cron_15, of_cron_19, outer()):
        assert sends(function.__code__), function
    assert not sends(outer.__code__), "the one who asks for the cursor is meant, not who defines it"


def listing(cr):
    try:
        cr.execute("select datname from pg_database where datname not in %s order by datname", (("postgres",),))
        return [name for name, in cr.fetchall()]
    except Exception:
        return []


def listening(cr):
    cr.execute("listen imbus")
    cr.execute("LISTEN cron_trigger")


@pytest.mark.parametrize("function", [listing, listening])
def test_nobody_else_does(function):
    assert not sends(function.__code__)


def test_several_leave_in_one_statement():
    odd = Notification('"od""d%"', "imbus", "[]")
    text, parameters = statement([Notification(*BUS, "[1]"), odd])
    assert text == 'SELECT pg_notify(%s, %s), "od""d%%"(%s, %s)'
    assert parameters == ["imbus", "[1]", "imbus", "[]"]


class Refused(psycopg2.Error):
    """psycopg2 lets nobody set `pgcode`; the real one is in tests/stack/test_notifier.py."""

    def __init__(self, state):
        super().__init__(state)
        self.state = state

    pgcode = property(lambda self: self.state)


@pytest.mark.parametrize("state, refused", [
    ("22023", True),    # payload string too long
    ("42883", True),    # no such function
    ("P0001", True),    # raised by the function
    ("08P01", False),   # PgBouncer
    ("57P01", False),   # terminated by an administrator
    ("25006", False),   # a standby
    ("53300", False),   # too many connections
    ("54000", False),   # too many notifications in the queue
    ("57014", False),   # a timeout
    (None, False),
])
def test_what_the_server_refuses_for_ever(state, refused):
    assert notifier.is_refusal(Refused(state)) is refused


@pytest.mark.parametrize("error", [None, ValueError("22023"), errors.ConnectionLost("payload string too long")])
def test_what_is_no_refusal(error):
    assert not notifier.is_refusal(error)


# -- what waits --------------------------------------------------------------------------------------------------------

def notifications(*payloads):
    return [Notification(*BUS, payload) for payload in payloads]


def all_of(outbox):
    found = []
    while outbox:
        found.append(outbox.take().payload)
        outbox.remove()
    return found


def test_they_leave_in_their_order():
    outbox = Outbox(10)
    for each in notifications("1", "2", "3"):
        assert outbox.add(each) == 0
    assert len(outbox) == 3 and all_of(outbox) == ["1", "2", "3"]
    assert not outbox and outbox.take() is None


def test_equal_ones_are_one():
    outbox = Outbox(10)
    for each in notifications("1", "2", "1", "2", "2"):
        assert outbox.add(each) == 0
    outbox.add(Notification(*CRON, "1"))    # another channel
    assert all_of(outbox) == ["1", "2", "1"]


def test_one_that_cannot_leave_stays_the_first():
    outbox = Outbox(10)
    for each in notifications("1", "2"):
        outbox.add(each)
    for _ in range(3):
        assert outbox.take().payload == "1"
        assert len(outbox) == 2, "it waits while it is tried"
        outbox.put_back()
    assert all_of(outbox) == ["1", "2"]


def test_one_that_is_on_its_way_is_not_equal():
    """It may arrive before the rows of the second are committed: then nobody would tell of them."""
    outbox = Outbox(10)
    first, = notifications("1")
    outbox.add(first)
    assert outbox.take() == first
    outbox.add(first)
    outbox.remove()
    assert all_of(outbox) == ["1"]
    outbox.add(first)
    assert outbox.take() == first
    outbox.add(first)
    outbox.put_back()
    assert all_of(outbox) == ["1"], "neither has left: one is enough"


def test_the_oldest_is_dropped_when_too_many_wait():
    outbox = Outbox(3)
    dropped = sum(map(outbox.add, notifications(*"12345")))
    assert dropped == 2 and len(outbox) == 3
    assert outbox.add(*notifications("5")) == 0, "an equal one takes no place"
    assert all_of(outbox) == ["3", "4", "5"]


def test_it_is_bounded_while_one_is_tried():
    outbox = Outbox(3)
    for each in itertools.islice(notifications(*"123456789"), 3):
        outbox.add(each)
    outbox.take()
    for each in notifications(*"456789"):
        outbox.add(each)
    outbox.put_back()
    assert len(outbox) <= 4


# -- the end of the process --------------------------------------------------------------------------------------------

class SlowConnection:
    """Each statement takes a little, less than what is left to the last one."""

    def receive(self):
        pass

    def query(self, *args, timeout):
        time.sleep(0.05)

    def close(self):
        pass


def test_the_end_of_the_process_is_not_held_up(monkeypatch):
    ours = notifier.Notifier(lambda timeout, host_timeout: SlowConnection(), 5.0, 1.0)
    monkeypatch.setattr(ours, "EXIT_SECONDS", 0.2)
    monkeypatch.setattr(ours, "_closed_by_worker", True)    # no thread
    for each in notifications(*map(str, range(40))):
        ours._outbox.add(each)
    before = time.monotonic()
    ours.process_ends()
    assert time.monotonic() - before < 1.0, "40 of them take 2 s"
    assert 0 < ours.sent < 40 and ours.snapshot()["waiting"] == 40 - ours.sent
