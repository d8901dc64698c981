"""The websockets without a server: what is patched of which series, and which errors stay what they are."""
import enum
import json
import sys
import types

import psycopg2
import pytest
from psycopg2.pool import PoolError

from bus_alt_connection import websockets

SUBSCRIBE, PRESENCE = (json.dumps({"event_name": name}) for name in ("subscribe", "update_presence"))


class State(enum.IntEnum):
    OPEN = 0
    CLOSED = 2


class InvalidDatabase(Exception):
    """As upstream has it; its cause is psycopg2's."""


@pytest.fixture
def upstream(monkeypatch):
    """A stand-in for the module odoo.addons.bus.websocket, from 16 on. What fails is in `fail`."""
    module = types.ModuleType("odoo.addons.bus.websocket")
    module.fail = RuntimeError("as it was")

    class Websocket:
        def __init__(self, state=State.OPEN):
            self.state, self.ended = state, 0

        def _terminate(self):
            self.ended += 1
            raise psycopg2.OperationalError("the database is away")

    class WebsocketConnectionHandler:
        @classmethod
        def _serve_forever(cls, websocket, db, httprequest):
            raise module.fail

    class WebsocketRequest:
        def serve_websocket_message(self, message):
            if isinstance(module.fail, InvalidDatabase):
                raise module.fail from psycopg2.OperationalError("the database is away")
            raise module.fail

    for each in (Websocket, WebsocketConnectionHandler, WebsocketRequest):
        setattr(module, each.__name__, each)
    bus = types.ModuleType("odoo.addons.bus")
    bus.websocket = module
    for name in ("odoo", "odoo.addons"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, bus.__name__, bus)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


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


@pytest.mark.parametrize("name", ["WebsocketConnectionHandler", "WebsocketRequest", "Websocket"])
def test_a_part_is_missing(upstream, name):
    delattr(upstream, name)
    install()


def test_no_websockets(upstream, monkeypatch):
    monkeypatch.setitem(sys.modules, upstream.__name__, None)
    delattr(sys.modules["odoo.addons.bus"], "websocket")
    install()
