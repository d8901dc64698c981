"""The looks at the table: idempotent, so that nothing that fails half-way can be lost; one database after the other.

A stand-in for the pooled path answers in PostgreSQL's place; that the query is right SQL is seen on a real server,
wherever a row is found by a look.
"""
import logging
import sys
import threading
from types import SimpleNamespace

import pytest

from bus_alt_connection import dispatcher, endpoints, recovery, runtime, state
from bus_alt_connection.errors import ConnectionLost
from bus_alt_connection.recovery import Recovery

POLL = 5.0      # seconds
TOPICS, WEBSOCKETS, LONG_POLLS = dispatcher.SERIES      # from 20 on, from 16 on, before


class Client:
    """Of any series: it has received all up to `last`, and `history`."""

    def __init__(self, name, last, *history):
        self.name, self.woken = name, []
        self._last_notif_sent_id = self._last_fetched_id = last
        self._notif_history = self._history = [(number, 0.0) for number in history]

    def trigger_notification_dispatching(self):
        self.woken.append(self.name)

    set = trigger_notification_dispatching


class Path:
    """In the place of the pooled path: `rows` are {database: [(channel, ids)]}, of which a look sees what is recent.

    `away` has the databases that do not answer, `gone` what there is not; `asked` are (database, parameters).
    """

    def __init__(self):
        self.rows, self.away, self.gone, self.asked = {}, set(), set(), []
        self.standby = self.more = False
        self.closed = 0

    def query(self, database, sql, parameters=None):
        if sql == recovery.EXISTS:
            return [] if parameters[0] in self.gone else [(1,)]
        self.asked.append((database, parameters))
        if database in self.away | self.gone:
            raise ConnectionLost("Connection refused", database)
        table = self.rows.get(database, [])
        found = [(channel, [number for number in ids if number > parameters["known"]]) for channel, ids in table]
        everything = [number for _, ids in table for number in ids]
        read = [number for _, ids in found for number in ids]
        rows = [(channel, ids, None, None, None, None) for channel, ids in found if ids]
        return [*rows, (None, None, max(everything, default=0), min(read, default=None), self.standby, self.more)]

    def give_up_standby(self):
        self.close()
        return ConnectionLost("Odoo's own db_host leads to a standby")

    def forget(self, database):
        assert database in self.gone

    def close(self):
        self.closed += 1


class Listener:
    """As much of one as the recovery reads."""

    def __init__(self, subscribers):
        self.subscribers, self.delivered, self.defects, self.checks = subscribers, [], [], []
        self.settings = SimpleNamespace(poll_seconds=POLL, connect_timeout_seconds=5.0)
        self.loop_connection = SimpleNamespace(deliver=lambda *given: self.delivered.append(given))
        self.state, self.session = state.initial(), None
        self.changed, self.stopping = threading.Event(), threading.Event()

    def enter(self, phase):
        self.session = None if phase == state.CONNECTING else self.session or SimpleNamespace(identity=object())
        self.state = state.successor(self.state, phase)

    def report_defect(self):
        self.defects.append(sys.exc_info()[1])

    def check_path(self, path):
        self.checks.append(runtime.monotonic())


@pytest.fixture
def look(clock, monkeypatch):
    """`look(channels, kind)`: the recovery of a listener with these subscribers, with `.listener` and `.path`."""
    monkeypatch.setattr(endpoints, "loaded_databases", lambda: ["demo"])

    def make(channels, kind=WEBSOCKETS):
        listener = Listener(dispatcher.Subscribers(SimpleNamespace(**{kind.subscribers: channels}), kind))
        made = Recovery(listener)
        made.listener, made.path = listener, Path()
        made._path = made.path
        return made
    return make


def run(looks, clock, seconds):
    """Make the looks that become due within so many seconds."""
    end = clock.now + seconds
    while True:
        pause = looks.step()
        if clock.now + pause > end:
            clock.now = max(clock.now, end)
            return
        clock.now += pause


def each(*clients):
    return {("demo", client.name): {client} for client in clients}


def text(name, database="demo"):
    return f'["{database}", "{name}"]'


# -- idempotent --------------------------------------------------------------------------------------------------------

class Killed(BaseException):
    """As gevent ends a greenlet."""


def raising_at(number, error):
    """A trace function that raises at the line of this number that a look runs; `.lines` counts them."""
    def trace(frame, event, arg):
        if frame.f_code.co_filename not in (recovery.__file__, dispatcher.__file__):
            return None
        if event == "line":
            trace.lines += 1
            if trace.lines == number:
                raise error
        return trace
    trace.lines = 0
    return trace


def traced(looks, number, error=None):
    """Make a step that raises at a line: the number of lines that were run."""
    trace, before = raising_at(number, error), sys.gettrace()
    sys.settrace(trace)
    try:
        looks.step()
    except (Killed, RuntimeError) as exc:
        assert exc is error
    finally:
        sys.settrace(before)
    return trace.lines


def world(look, clock, kind, phase):
    """A recovery with four clients, two of which lack a row (long polls know that themselves)."""
    clients = [Client("has all", 9), Client("lacks some", 5, 9), Client("lacks one", 5, 7), Client("no row", 1)]
    channels = {("demo", client.name): client if kind is TOPICS else {client} for client in clients}
    looks = look(channels, kind)
    if phase is not None:
        looks.step()        # it has looked before, so that what it keeps is there
    looks.path.rows["demo"] = [(text("has all"), [9, 8]), (text("lacks some"), [9, 6, 7]), ("no JSON", [1]),
                               (text("lacks one"), [8]), (text("gone"), [8])]
    clock.now += 1
    if phase == state.LISTENING:
        looks.listener.enter(state.VERIFYING)
        looks.listener.enter(state.LISTENING)

    def woken():
        """Who was woken since the last time, sorted."""
        found = [payload for _, payload in looks.listener.delivered]
        found += [name for client in clients for name in client.woken]
        del looks.listener.delivered[:]
        for client in clients:
            del client.woken[:]
        return sorted(found)
    return looks, woken


@pytest.mark.parametrize("phase", [None, state.CONNECTING, state.LISTENING], ids=["first", "polling", "catching up"])
@pytest.mark.parametrize("kind", [TOPICS, WEBSOCKETS, LONG_POLLS], ids=["20", "16 to 19", "12 to 15"])
@pytest.mark.parametrize("make_error", [RuntimeError, Killed])
def test_whatever_line_of_a_look_raises_the_next_look_wakes_the_same(look, clock, kind, phase, make_error):
    """What was woken has fetched nothing here, so the next look has to find all of it anew."""
    looks, woken = world(look, clock, kind, phase)
    clock.now += 30
    lines, expected = traced(looks, 0), woken()
    assert lines > 40 and len(expected) == (3 if kind is LONG_POLLS else 2)
    for number in range(1, lines + 1):
        looks, woken = world(look, clock, kind, phase)
        clock.now += 30
        assert traced(looks, number, make_error()) >= number
        complete = woken() == expected or looks.listener.defects
        clock.now += 30
        run(looks, clock, 0)
        if kind is LONG_POLLS and phase == state.LISTENING and complete:
            continue    # it looks no more; if setting an event failed, that poll would ask again within 50 s
        assert woken() == expected, f"after line {number} of {lines}"


def test_what_was_missed_meanwhile_is_found(look, clock):
    """A look that failed changes nothing of what the next one reads."""
    client = Client("one", 1)
    looks = look(each(client))
    looks.path.rows["demo"] = [(text("one"), [1])]
    run(looks, clock, 100)
    looks.path.away = {"demo"}
    run(looks, clock, 100)
    looks.path.rows["demo"] = [(text("one"), [1, 2])]
    run(looks, clock, 200)
    assert not client.woken
    looks.path.away = set()
    run(looks, clock, Recovery.MOST_SECONDS)
    assert client.woken


@pytest.mark.parametrize("late", [6, 30, 59])
@pytest.mark.parametrize("kind", [TOPICS, WEBSOCKETS])
def test_a_lower_id_that_commits_later_is_found(look, clock, kind, late):
    """For a minute: so long a client knows what it has received."""
    client = Client("one", 1, 3)
    looks = look({("demo", "one"): client if kind is TOPICS else {client}}, kind)
    looks.listener.enter(state.LISTENING)
    looks.path.rows["demo"] = [(text("one"), [1])]
    run(looks, clock, 100)
    looks.path.rows["demo"] = [(text("one"), [1, 3])]
    run(looks, clock, late)
    assert not client.woken and not looks.listener.delivered
    looks.path.rows["demo"] = [(text("one"), [1, 3, 2])]
    run(looks, clock, 30)
    assert client.woken or looks.listener.delivered


def test_old_rows_are_not_read_again_and_again(look, clock):
    looks = look(each(Client("one", 10 ** 6)))
    highest = []
    for number in range(1, 200):
        looks.path.rows["demo"] = [(text("one"), [number])]
        highest.append((clock.now, number))
        run(looks, clock, POLL)
        _, parameters = looks.path.asked[-1]
        if number > 50:
            minute_ago = max(number for at, number in highest if at <= clock.now - Recovery.STRAGGLER_SECONDS - POLL)
            assert minute_ago - 4 <= parameters["known"] <= minute_ago


def test_a_table_whose_ids_went_back(look, clock):
    """After a failover that lost rows, a restore, or Odoo's own deletion of old rows."""
    client = Client("one", 5)
    looks = look(each(client))
    looks.path.rows["demo"] = [(text("one"), [90])]
    run(looks, clock, 200)
    del client.woken[:]
    looks.path.rows["demo"] = [(text("one"), [7])]
    run(looks, clock, 3 * POLL)
    assert client.woken


def test_one_that_cannot_be_woken_keeps_no_other_from_it(look, clock):
    clients = [Client("broken", 0), Client("one", 0), Client("another", 0)]
    clients[0].trigger_notification_dispatching = None
    looks = look(each(*clients))
    looks.path.rows["demo"] = [(text(client.name), [1]) for client in clients]
    run(looks, clock, 0)
    assert (clients[1].woken, clients[2].woken) == (["one"], ["another"])
    assert [type(error) for error in looks.listener.defects] == [TypeError]


def test_wake_ups_are_spread(look, clock):
    clients = [Client(str(number), 0) for number in range(1000)]
    looks = look(each(*clients))
    looks.path.rows["demo"] = [(text(client.name), [1]) for client in clients]
    looks.step()
    assert all(client.woken for client in clients) and looks.woken == 1000
    assert 1000 / sum(clock.slept) == pytest.approx(500, rel=0.05)


@pytest.mark.parametrize("listening, woken", [(False, ["one", "another"]), (True, ["one"])])
def test_more_rows_than_are_read(look, clock, listening, woken):
    """Nobody knows which those are: all are woken, unless NOTIFYs of them have come."""
    clients = [Client("one", 0), Client("another", 100)]
    looks = look(each(*clients))
    if listening:
        looks.listener.enter(state.LISTENING)
        run(looks, clock, 1)
        clock.now += 30
    looks.path.more, looks.path.rows["demo"] = True, [(text("one"), [1])]
    looks.step()
    assert [name for client in clients for name in client.woken] == woken


# -- when --------------------------------------------------------------------------------------------------------------

def test_while_it_is_not_listening_the_table_is_polled(look, clock):
    looks = look(each(Client("one", 0)))
    run(looks, clock, 100)
    assert 20 <= len(looks.path.asked) <= 26


@pytest.mark.parametrize("kind, looks_in_100_seconds", [(WEBSOCKETS, (5, 6)), (TOPICS, (5, 6)), (LONG_POLLS, (1, 1))])
def test_while_it_is_listening_it_looks_seldom(look, clock, kind, looks_in_100_seconds):
    """Up to 15 not at all: a long poll looks at the table itself. The row of a NOTIFY that may be on its way waits."""
    looks = look(each(Client("one", 0)), kind)
    run(looks, clock, 1)
    del looks.path.asked[:]
    looks.listener.enter(state.LISTENING)
    run(looks, clock, 100)
    least, most = looks_in_100_seconds
    assert least <= len(looks.path.asked) <= most
    assert [parameters["settled"] for _, parameters in looks.path.asked] == [0] + [Recovery.SETTLED_SECONDS] * (
        len(looks.path.asked) - 1)
    assert 4 <= len(looks.listener.checks) <= 5


def test_listening_again_is_a_look_at_once_and_a_loss_soon(look, clock):
    looks = look(each(Client("one", 0)))
    looks.listener.enter(state.LISTENING)
    run(looks, clock, 10)
    for phase, soon in ((state.CONNECTING, 1.0), (state.VERIFYING, POLL), (state.LISTENING, 0)):
        del looks.path.asked[:]
        looks.listener.enter(phase)
        run(looks, clock, soon)
        assert len(looks.path.asked) == 1, phase


def test_a_new_connection_may_be_to_another_server(look, clock):
    looks = look(each(Client("one", 0)))
    run(looks, clock, 1)
    assert not looks.path.closed
    looks.listener.enter(state.VERIFYING)
    run(looks, clock, 1)
    run(looks, clock, 1)
    assert looks.path.closed == 1


def test_nobody_is_here(look, clock):
    looks = look({})
    run(looks, clock, 100)
    assert not looks.path.asked


# -- databases that do not answer --------------------------------------------------------------------------------------

def test_those_that_do_not_answer_come_after_the_others_and_less_often(look, clock, caplog):
    names = ["away 1", "away 2", "live"]
    looks = look({(name, "x"): {Client(name, 0)} for name in names})
    looks.path.away = {"away 1", "away 2"}
    looks.path.rows["live"] = [(text("x", "live"), [1])]
    with caplog.at_level(logging.WARNING):
        run(looks, clock, 300)
    asked = [database for database, *_ in looks.path.asked]
    assert 55 <= asked.count("live") <= 80
    for name in names[:2]:
        assert 5 <= asked.count(name) <= 12
    del looks.path.asked[:]
    clock.now += 100
    for _ in range(3):
        looks.step()
    assert [database for database, *_ in looks.path.asked][0] == "live"
    lines = [record.getMessage() for record in caplog.records]
    assert 4 <= len(lines) <= 6 and all("Connection refused" in line and "away" in line for line in lines)


def test_one_that_answers_again_has_the_others_asked_at_once(look, clock):
    looks = look({("one", "x"): {Client("one", 0)}, ("another", "x"): {Client("another", 0)}})
    looks.path.away = {"one", "another"}
    run(looks, clock, 300)
    looks.path.away = set()
    del looks.path.asked[:]
    run(looks, clock, Recovery.MOST_SECONDS)
    first = looks.path.asked[0][0]
    assert looks.path.asked[1][0] != first


def test_one_that_there_is_not_is_no_trouble(look, clock, caplog):
    looks = look({("gone", "x"): {Client("gone", 0)}})
    looks.path.gone = {"gone"}
    run(looks, clock, 300)
    assert not caplog.records and len(looks.path.asked) <= 6


def test_a_standby_is_not_believed(look, clock):
    client = Client("one", 0)
    looks = look(each(client))
    looks.path.rows["demo"] = [(text("one"), [1])]
    looks.path.standby = True
    run(looks, clock, 1)
    assert not client.woken and looks.path.closed
    looks.path.standby = False
    run(looks, clock, 3 * POLL)
    assert client.woken
