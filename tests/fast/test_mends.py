"""The mends of upstream's own holes: what is patched of which series, and what stays as it is."""
import bisect
import enum
import json
import sys
from types import SimpleNamespace

import psycopg2
import pytest
from psycopg2.pool import PoolError

from bus_alt_connection import dispatcher
from bus_alt_connection.mends import history, long_polls, websockets
from stack.addon import module

SUBSCRIBE, PRESENCE = (json.dumps({"event_name": name}) for name in ("subscribe", "update_presence"))


class State(enum.IntEnum):
    OPEN = 0
    CLOSED = 2


class InvalidDatabase(Exception):
    """As upstream has it; its cause is psycopg2's."""


@pytest.fixture
def upstream(monkeypatch):
    """A stand-in for the module odoo.addons.bus.websocket, from 16 on. What fails is in `fail`."""
    for name in ("odoo.addons.bus", "odoo.addons.bus.websocket"):
        monkeypatch.setitem(sys.modules, name, None)        # after the test it is gone
        found = module(name, fail=RuntimeError("as it was"))

    class Websocket:
        def __init__(self, state=State.OPEN):
            self.state, self.ended = state, 0

        def _terminate(self):
            self.ended += 1
            raise psycopg2.OperationalError("the database is away")

    class WebsocketConnectionHandler:
        @classmethod
        def _serve_forever(cls, websocket, db, httprequest):
            raise found.fail

    class WebsocketRequest:
        def serve_websocket_message(self, message):
            if isinstance(found.fail, InvalidDatabase):
                raise found.fail from psycopg2.OperationalError("the database is away")
            raise found.fail

    for each in (Websocket, WebsocketConnectionHandler, WebsocketRequest):
        setattr(found, each.__name__, each)
    return found


def install():
    for owner, name, replacement in websockets.patches():
        setattr(owner, name, replacement)


@pytest.mark.parametrize("state, times", [(State.OPEN, 1), (State.CLOSED, 0)])
def test_it_is_ended_once_and_the_error_stays(upstream, state, times):
    install()
    websocket = upstream.Websocket(state)
    with pytest.raises(RuntimeError, match="as it was"):
        upstream.WebsocketConnectionHandler._serve_forever(websocket, "db", None)
    assert websocket.ended == times


@pytest.mark.parametrize("error, message, expected", [
    (psycopg2.OperationalError("away"), SUBSCRIBE, PoolError),
    (psycopg2.InterfaceError("cursor already closed"), SUBSCRIBE, PoolError),
    (InvalidDatabase(), SUBSCRIBE, PoolError),
    (psycopg2.ProgrammingError("no such table"), SUBSCRIBE, psycopg2.ProgrammingError),
    (ValueError("channels"), SUBSCRIBE, ValueError),
    # who is subscribed stays so
    (psycopg2.OperationalError("away"), PRESENCE, psycopg2.OperationalError),
    (psycopg2.OperationalError("away"), b"\0", psycopg2.OperationalError),
])
def test_which_errors_close_it(upstream, error, message, expected):
    install()
    upstream.fail = error
    with pytest.raises(expected) as raised:
        upstream.WebsocketRequest().serve_websocket_message(message)
    assert type(raised.value) is expected


@pytest.mark.parametrize("name", ["WebsocketConnectionHandler", "WebsocketRequest"])
def test_a_part_is_missing(upstream, name):
    """Then this mend is left out as a whole, which is one line in the log."""
    delattr(upstream, name)
    with pytest.raises(AttributeError, match=name):
        websockets.patches()


# -- what was sent is remembered for long, but not in any length -------------------------------------------------------

class Client:
    """As upstream keeps what it sent: `fetch(ids)` at the time `now`."""

    MAX_NOTIFICATION_HISTORY_SEC = MAX_HISTORY_SEC = 10

    def __init__(self):
        self._last_notif_sent_id, self._notif_history, self.sent = 0, [], []

    def fetch(self, *ids):
        known = {number for number, _ in self._notif_history}
        found = [number for number in ids if number > self._last_notif_sent_id and number not in known]
        self.sent += found
        for number in found:
            bisect.insort(self._notif_history, (number, history.time.time()))
        gone = 0
        for _, at in self._notif_history:
            if history.time.time() - at <= self.MAX_NOTIFICATION_HISTORY_SEC:
                break
            gone += 1
        if gone:
            self._last_notif_sent_id = self._notif_history[gone - 1][0]
            self._notif_history = self._notif_history[gone:]

    _dispatch_bus_notifications = fetch


@pytest.fixture
def client(upstream, monkeypatch, clock):
    monkeypatch.setattr(history, "time", SimpleNamespace(time=clock.monotonic, monotonic=clock.monotonic))
    upstream.Websocket = type("Websocket", (Client,), {})
    for owner, name, replacement in history.patches():
        setattr(owner, name, replacement)
    upstream.Websocket.fetch = upstream.Websocket._dispatch_bus_notifications
    return upstream.Websocket()


@pytest.mark.parametrize("late, arrives", [(2, True), (9, True), (11, True), (60, True), (89, True), (91, False)])
def test_a_straggler_arrives_once(client, clock, late, arrives):
    client.fetch(2, 3)
    for _ in range(late):
        clock.now += 1
        client.fetch()
    for _ in range(3):
        client.fetch(1, 2, 3)
    assert client.sent == [2, 3] + [1] * arrives


def test_on_a_hot_channel_only_upstreams_time_is_kept(client, clock):
    """What is kept is part of each query; nothing is sent twice, whatever is forgotten."""
    rows, late = [], []
    for number in range(0, 10000, 2):
        rows.append(number + 2)
        if number % 20 == 0:
            late.append((clock.now + 5, number + 1))        # commits five seconds later
        rows += [straggler for due, straggler in late if due <= clock.now]
        late = [each for each in late if each[0] > clock.now]
        client.fetch(*rows[-500:])
        assert len(client._notif_history) <= 850        # a straggler stands before what is older by the clock
        clock.now += 0.02
    assert len(client.sent) == len(set(client.sent)) and set(client.sent) == set(rows)


# -- long polls --------------------------------------------------------------------------------------------------------

@pytest.fixture
def long_poller(monkeypatch):
    """A dispatcher before 16: its `poll` returns the timeout that it was given, its `run` the server's end."""
    class ImDispatch:
        def poll(self, dbname, channels, last, options=None, timeout=50):
            return timeout

        def run(self):
            return "ran"
    stopping = SimpleNamespace(stop_event=SimpleNamespace(set="set"))
    monkeypatch.setattr(dispatcher, "find", lambda: (stopping, ImDispatch, "loop"))
    monkeypatch.setattr(long_polls, "find", dispatcher.find)
    return ImDispatch


def patched(owner):
    for where, name, replacement in long_polls.patches():
        assert where is owner
        setattr(where, name, replacement)
    return owner()


@pytest.mark.parametrize("args, kwargs, timeout", [
    ((0,), {}, 40), ((None,), {}, 40), ((0, {}), {}, 40), ((7,), {}, 50), ((0, {}, 5), {}, 5),
    ((0,), {"timeout": 5}, 5),
])
def test_the_first_long_poll_looks_again_in_time(long_poller, args, kwargs, timeout):
    assert patched(long_poller).poll("demo", ["here"], *args, **kwargs) == timeout


def test_in_15_a_loop_that_began_before_its_server_ends_with_it(long_poller, monkeypatch):
    one = patched(long_poller)
    assert one.run() == "ran" and long_poller.run.__name__ == "run"
    long_poller.wakeup_workers = lambda self: None
    one, asked = patched(long_poller), []
    monkeypatch.setattr(long_polls.odoo.service.server, "server", SimpleNamespace(on_stop=asked.append))
    assert one.run() == "ran"
    assert asked == ["set", one.wakeup_workers]
