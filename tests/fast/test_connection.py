"""A connection to real sockets behind which nobody speaks PostgreSQL's protocol."""
import contextlib
import socket
import time

import pytest

from bus_alt_connection.connection import BlockingConnection, addresses
from bus_alt_connection.errors import ConnectionLost
from bus_alt_connection.tasks import Tasks

TIMEOUT = 1.0       # seconds


@pytest.fixture
def mute():
    """Ports of three sockets that take connections and say nothing."""
    with contextlib.ExitStack() as exits:
        sockets = [exits.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        yield [each.getsockname()[1] for each in sockets]


def test_the_time_limit_holds_for_all_addresses_together(mute):
    begun = time.monotonic()
    with pytest.raises(ConnectionLost, match="no answer in time"):
        BlockingConnection({"host": ",".join(["127.0.0.1"] * 3), "port": ",".join(map(str, mute))}, TIMEOUT)
    assert TIMEOUT <= time.monotonic() - begun < 2 * TIMEOUT


def test_no_socket_is_to_be_had_to_resolve_a_name(monkeypatch):
    def full(*args):
        raise OSError(24, "Too many open files")
    tasks = Tasks()     # it has its own already
    monkeypatch.setattr(socket, "socketpair", full)
    try:
        with pytest.raises(ConnectionLost, match="Too many open files"):
            tasks.run(addresses({"host": "no-such-name.invalid"}, TIMEOUT))
    finally:
        tasks.close()
