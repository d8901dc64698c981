"""The shape of Odoo 20, which no machine here can run, on the tree of 19: all that works on 19 works with it.

`bus_test_twenty` gives it that shape. Takes 3 min.
"""
import contextlib
import time

import pytest
import requests

from stack.clients.client import Sender, Session
from stack.clients.flow import Flow
from stack.clients.jobs import QUICK, a_job
from stack.clients.listeners import direct, wait_listening
from stack.clients.state import ROUTE, health, instant, lines, pass_seconds, wait_failing, wait_healthy
from stack.process import DEADLINE, free_port, wait_until
from tests.stack.test_metrics import scrape

pytestmark = pytest.mark.needs("shape_of_20")

FOUND = 60.0        # seconds
BACK = 10.0         # the same, after a silent path

SERVERS = pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])


def well(server):
    """Nothing that is worse than information was said."""
    said = [line for level in ("WARNING", "ERROR") for line in lines(server, f" {level} ")]
    assert not said, said
    assert "Traceback" not in server.log_text()


@SERVERS
def test_the_shape_itself_works(twenty, bus, workers):
    """Without this addon and without a pooler: what fails below is not the stand-in's."""
    server = twenty(workers=workers, pooled=False, direct=False, env={"BUS_TEST_ORDER": "bus_test_twenty"})
    client, sender = bus(server)
    server.wait_log(f"listen imbus on db {server.system_database}")
    pass_seconds(1)         # until it does
    for number in range(20):
        sender.send_orm(number)
        assert client.next(timeout=5).payload == number


@SERVERS
def test_messages_arrive(twenty, bus, postgres, workers):
    server = twenty(workers=workers)
    client, sender = bus(server)
    pid, = wait_listening(postgres, server, "bus")
    assert postgres.query("SELECT datname FROM pg_stat_activity WHERE pid = %s", [pid]) == [(server.system_database,)]
    wait_healthy(server)
    for number in range(20):
        sender.send_orm(number)
        assert client.next(timeout=5).payload == number
    well(server)


@SERVERS
def test_a_killed_listener_is_back(twenty, pgbouncer, postgres, workers):
    server = twenty(workers=workers)
    with Flow(server, pgbouncer, postgres, clients=3) as flow:
        for _ in range(3):
            pid, = wait_listening(postgres, server, "bus")
            wait_healthy(server)
            event = time.monotonic()
            postgres.query("SELECT pg_terminate_backend(%s)", [pid])
            assert flow.back_after(event) < BACK
        wait_healthy(server)
        flow.check_pushed()
        flow.check()


def test_a_silent_path(twenty, pgbouncer, postgres, proxy):
    server = twenty(options={"imdispatcher_db_host": proxy.host, "imdispatcher_db_port": proxy.port})
    with Flow(server, pgbouncer, postgres) as flow:
        wait_listening(postgres, server, "bus")
        wait_healthy(server)
        proxy.freeze()
        try:
            wait_failing(server)
            event = time.monotonic()
            flow.wait_received(3, since=event)
            assert flow.slowest(since=event) < BACK
        finally:
            proxy.heal()
        wait_healthy(server)
        instant(flow)
        flow.check()


def test_a_row_without_a_notify_is_found(twenty, bus, postgres):
    """While the bus listens, and with what came before the listener was lost."""
    server = twenty()
    client, sender = bus(server)
    pid, = wait_listening(postgres, server, "bus")
    wait_healthy(server)
    sender.insert("nobody was notified")
    notification = client.next(FOUND)
    assert notification and notification.payload == "nobody was notified"
    since = server.log_size()
    sender.insert("before it was lost")
    postgres.query("SELECT pg_terminate_backend(%s)", [pid])
    server.wait_log("The bus listener is listening again on ", since=since)
    notification = client.next(timeout=10)
    assert notification and notification.payload == "before it was lost"
    assert client.next(timeout=2) is None


@SERVERS
def test_cron(twenty, bus, postgres, workers):
    server = twenty(workers=workers)
    with a_job(server, bus) as trigger:
        for _ in range(2):
            pids = wait_listening(postgres, server, "cron")
            assert postgres.query("SELECT DISTINCT datname FROM pg_stat_activity WHERE pid = ANY(%s)", [pids]) == [
                (server.system_database,)]
            assert trigger() < QUICK
            postgres.query("SELECT pg_terminate_backend(pid) FROM unnest(%s) pid", [pids])
            wait_until(lambda pids=pids: wait_listening(postgres, server, "cron") != pids, DEADLINE, "not back")
        assert trigger() < QUICK


@SERVERS
def test_health(twenty, bus, postgres, pgbouncer, workers):
    server = twenty(workers=workers)
    assert health(server)[0] == 200
    client, sender = bus(server)
    assert wait_healthy(server)["state"] == "listening"
    sender.close()
    postgres.stop()
    try:
        assert wait_failing(server)["status"] == "fail"
    finally:
        postgres.start()
    wait_healthy(server, DEADLINE)
    host_is(server, {200})


def test_the_function_that_odoo_notifies_with(twenty, postgres, pgbouncer, function):
    """Where nobody may call pg_notify, nothing could be verified without it."""
    server = twenty(env={"ODOO_NOTIFY_FUNCTION": function}, options={"db_system": "postgres"})
    session = Session(server, "demo")
    sender = Sender(session, pgbouncer, "own-function")
    with session.subscribe([sender.channel], last=sender.insert("seen before")) as client:
        client.wait_subscribed()
        wait_listening(postgres, server, "bus")
        wait_healthy(server)
        sender.send_orm("through the function")
        assert client.next(timeout=5).payload == "through the function"
    sender.close()


# -- several evented processes

EVENTED = 2
CLIENTS = 12        # of which each process gets some: the kernel deals them out by their ports


@pytest.fixture
def several(twenty, pgbouncer, postgres, proxy):
    """Two evented processes that have clients, and the port of their metrics: (the server, the port, a flow)."""
    port = free_port()
    server = twenty(workers=2, env={"BUS_TEST_EVENTED": str(EVENTED)}, options={
        "imdispatcher_metrics_port": port, "imdispatcher_db_host": proxy.host, "imdispatcher_db_port": proxy.port})
    wait_until(lambda: len(server.evented_pids) == EVENTED, DEADLINE, "not all evented processes run")
    with Flow(server, pgbouncer, postgres, clients=CLIENTS) as flow:
        wait_listening(postgres, server, "bus", count=EVENTED)
        yield server, port, flow


def ask(server, scope=""):
    """What one of the evented processes answers."""
    return requests.get(server.evented_url + ROUTE + scope, timeout=DEADLINE)   # a connection of its own


def host_is(server, statuses, times=24, timeout=DEADLINE):
    """Wait until whoever is asked says of the host what is expected: so often that each is asked."""
    found = []

    def asked():
        found[:] = [ask(server, "?scope=host") for _ in range(times)]
        return {answer.status_code for answer in found} == statuses
    wait_until(asked, timeout, lambda: f"not {statuses}: {[answer.text for answer in found]}")
    return found[0].json()


def listeners_in_metrics(port):
    return {value for name, value in scrape(port).items() if name == ("listeners_present", "bus", "host")}


@contextlib.contextmanager
def one_lost(server, postgres, proxy):
    """One of the listeners is lost and cannot come back, the others stay."""
    proxy.refuse_new()
    try:
        postgres.query("SELECT pg_terminate_backend(%s)", [direct(postgres, server, "bus")[0][0]])
        wait_listening(postgres, server, "bus", count=EVENTED - 1)
        yield
    finally:
        proxy.heal()


def test_several_evented_processes(several, postgres):
    server, port, flow = several
    host_is(server, {200})
    flow.check_pushed()
    pids = wait_listening(postgres, server, "bus", count=EVENTED)
    event = time.monotonic()
    postgres.query("SELECT pg_terminate_backend(pid) FROM unnest(%s) pid", [pids])
    assert flow.back_after(event) < BACK
    flow.check_pushed()
    flow.check()


def test_whoever_is_asked_speaks_of_all(several, postgres, proxy):
    server, port, flow = several
    host_is(server, {200})
    wait_until(lambda: listeners_in_metrics(port) == {EVENTED}, DEADLINE,
               lambda: f"the metrics say {listeners_in_metrics(port)}")
    with one_lost(server, postgres, proxy):
        wait_until(lambda: listeners_in_metrics(port) == {EVENTED - 1}, DEADLINE,
                   lambda: f"the metrics say {listeners_in_metrics(port)}")
        assert host_is(server, {503})["remedy"]
        # the one whose own bus is well says the same
        assert {ask(server).status_code for _ in range(24)} == {200, 503}
        assert {ask(server, "?scope=host").status_code for _ in range(24)} == {503}
    wait_listening(postgres, server, "bus", count=EVENTED)
    host_is(server, {200})
    flow.check()
