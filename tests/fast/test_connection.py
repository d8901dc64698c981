"""A connection to real sockets behind which nobody speaks PostgreSQL's protocol, and names that nobody resolves."""
import contextlib
import socket
import threading
import time

import pytest
from bus_alt_connection.connection import BlockingConnection, addresses
from bus_alt_connection.tasks import Tasks

from bus_alt_connection import connection
from bus_alt_connection.errors import ConnectionLost

TIMEOUT = 1.0       # seconds
HANGS = 20.0        # how long a resolver does


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


class Resolver:
    """In the place of socket.getaddrinfo: it answers, or hangs."""

    def __init__(self):
        self.hangs = False
        self.asked, self.over = threading.Event(), threading.Event()

    def __call__(self, host, port, *args):
        self.asked.set()
        if self.hangs:
            self.over.wait(HANGS)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


@pytest.fixture
def resolver(monkeypatch):
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    monkeypatch.setattr(connection, "_known", {})
    yield resolver
    resolver.over.set()


@pytest.fixture
def resolved():
    """`resolved(port)`: the addresses of a name, and the seconds that it took."""
    with contextlib.closing(Tasks()) as tasks:
        def resolved(port=5432):
            begun = time.monotonic()
            found = tasks.run(addresses({"host": "db.example", "port": port}, TIMEOUT))
            return [each["hostaddr"] for each in found], time.monotonic() - begun
        yield resolved


def test_a_resolver_that_hangs_is_given_up(resolver, resolved):
    resolver.hangs = True
    begun = time.monotonic()
    with pytest.raises(ConnectionLost, match="could not resolve the host name: no answer in time"):
        resolved()
    assert TIMEOUT <= time.monotonic() - begun < HANGS / 2


def test_what_was_resolved_before_counts_while_it_hangs(resolver, resolved):
    assert resolved()[0] == ["127.0.0.1"]
    resolver.hangs = True
    found, seconds = resolved()
    assert found == ["127.0.0.1"]
    assert TIMEOUT <= seconds < HANGS / 2


def test_an_address_of_before_has_its_time_although_it_hangs(resolver, resolved, mute):
    resolved(mute[0])
    resolver.hangs = True
    begun = time.monotonic()
    with pytest.raises(ConnectionLost, match="no answer in time"):
        BlockingConnection({"host": "db.example", "port": mute[0]}, TIMEOUT)
    assert 2 * TIMEOUT <= time.monotonic() - begun < HANGS / 2


def test_a_resolver_that_hangs_holds_up_no_end(resolver):
    """Neither that of the listener's thread nor that of the process."""
    resolver.hangs = True
    tasks = Tasks()
    thread = threading.Thread(target=tasks.run, args=(addresses({"host": "db.example"}, HANGS),), daemon=True)
    thread.start()
    assert resolver.asked.wait(HANGS)
    tasks.stop()
    thread.join(HANGS / 2)
    assert not thread.is_alive()
    tasks.close()
    left = [each for each in threading.enumerate() if each.name == "bus_alt_connection.resolver"]
    assert left and all(each.daemon for each in left)
