"""A link to real sockets behind which nobody speaks PostgreSQL's protocol, and names that nobody resolves.

Contract: every wait has a deadline, and under gevent it leaves the hub to other greenlets.
"""
import contextlib
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bus_alt_connection import endpoints, pooled
from bus_alt_connection.errors import ConnectionLost, TimedOut
from bus_alt_connection.link import Link

TIMEOUT = 1.0       # seconds


@pytest.fixture
def mute():
    """Endpoints of three sockets that take connections and say nothing."""
    with contextlib.ExitStack() as exits:
        sockets = [exits.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        yield [{"hostaddr": "127.0.0.1", "port": each.getsockname()[1]} for each in sockets]


@pytest.fixture
def full():
    """An endpoint that takes no connection any more: its queue is full, and packets are dropped."""
    with contextlib.ExitStack() as exits:
        server = exits.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            each = exits.enter_context(socket.socket())
            each.setblocking(False)
            each.connect_ex(server.getsockname())
        yield {"hostaddr": "127.0.0.1", "port": server.getsockname()[1]}


def fails(function, *args):
    """(the error, the seconds that it took)"""
    begun = time.monotonic()
    with pytest.raises(ConnectionLost) as caught:
        function(*args)
    return caught.value, time.monotonic() - begun


def test_a_server_that_says_nothing_is_given_up(mute):
    error, seconds = fails(Link.open, mute[0], TIMEOUT)
    assert isinstance(error, TimedOut) and error.cause.name == "unreachable"
    assert TIMEOUT <= seconds < 2 * TIMEOUT


@pytest.fixture
def path(monkeypatch):
    """`path(endpoints)`: the pooled path of an Odoo whose address leads to these."""
    def path(targets):
        monkeypatch.setattr(endpoints, "resolve", lambda info: list(targets))
        return pooled.PooledPath(20 * TIMEOUT)
    return path


def query(path, seconds=TIMEOUT):
    return path.query("demo", "SELECT 1", seconds=seconds)


def test_the_time_limit_holds_for_all_addresses_together(full, path):
    error, seconds = fails(query, path([full] * 3))
    assert "the host does not answer" in error.reason
    assert TIMEOUT <= seconds < 2 * TIMEOUT


def test_an_address_that_cannot_even_be_tried_keeps_no_other_from_it(mute, path):
    error, _ = fails(query, path([{"host": "/nowhere"}, mute[0]]))
    assert "no answer in time" in error.reason


def test_a_login_that_the_server_does_not_finish_is_not_made_twice(mute, path):
    """It would wait there beside the first."""
    one = path([mute[0]])
    for _ in range(3):
        fails(query, one, TIMEOUT / 5)
    link, = one._started.values()
    with socket.socket(fileno=link._connection.fileno()) as client:
        port = client.getsockname()[1]
        client.detach()
    assert not one.connections and connections(mute[0]["port"]) == [port]
    one.close()


def connections(port):
    """The ports of those that are connected to it, as the kernel has them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1].split(":")[1], 16) for row in rows if int(row[2].split(":")[1], 16) == port and row[3] == "01"]


def test_a_host_that_answers_nothing_is_given_up_sooner(full):
    error, seconds = fails(Link.open, full, 20 * TIMEOUT, TIMEOUT)
    assert "the host does not answer" in error.reason
    assert TIMEOUT <= seconds < 2 * TIMEOUT


def test_who_waits_can_be_interrupted(mute):
    link = Link(mute[0], TIMEOUT)
    threading.Timer(0.1, link.interrupt).start()
    error, seconds = fails(link.connect, 20 * TIMEOUT)
    assert seconds < TIMEOUT and error.broken
    link.close()
    link.interrupt()        # of a closed one it does nothing


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), socket.gaierror(-2, "Name or service not known"),
                                   UnicodeError("label too long")])
def test_a_name_that_cannot_be_resolved(monkeypatch, error):
    def fail(host, *args):
        if host == "bad.example":
            raise error
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 5432)) for address in ("10.0.0.1", "10.0.0.2")]
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    lost = fails(endpoints.resolve, {"host": "bad.example", "port": 5432})[0]
    assert lost.reason.startswith("could not resolve the host name: ") and lost.cause.name == "name"
    assert lost.endpoint.startswith("bad.example:5432/")
    # another one is tried all the same: each of its addresses is an endpoint
    found = endpoints.resolve({"host": "bad.example,good.example,::1,/run/postgresql", "port": "1,2,3,4"})
    assert [(each["host"], each["port"], each.get("hostaddr")) for each in found] == [
        ("good.example", "2", "10.0.0.1"), ("good.example", "2", "10.0.0.2"), ("::1", "3", "::1"),
        ("/run/postgresql", "4", None)]
    assert endpoints.shown(found[0]) == "good.example (10.0.0.1):2/None as the system's user"


EVENTED = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent, sys, time
import gevent.socket, psycopg2.extensions

def wait(connection):       # as Odoo's evented process has it
    while connection.poll() != psycopg2.extensions.POLL_OK:
        gevent.socket.wait_read(connection.fileno())
psycopg2.extensions.set_wait_callback(wait)
from stack.addon import importable
importable()
from bus_alt_connection.errors import TimedOut
from bus_alt_connection.link import Link
beats = []

def beat():
    while True:
        beats.append(time.monotonic())
        gevent.sleep(0.01)
gevent.spawn(beat)
begun, used = time.monotonic(), time.process_time()
try:
    Link.open({"hostaddr": "127.0.0.1", "port": sys.argv[1]}, 1.0)
except TimedOut:
    assert 1.0 <= time.monotonic() - begun < 2.0
    assert len(beats) > 50, len(beats)
    assert time.process_time() - used < 0.5, "the hub was kept busy"
    print("gave up")
"""


def test_under_gevent_a_wait_leaves_the_hub_to_the_others(mute):
    done = subprocess.run([sys.executable, "-c", EVENTED, str(mute[0]["port"])], cwd=Path(__file__).parents[2],
                          text=True, timeout=120, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.stdout == "gave up\n"
