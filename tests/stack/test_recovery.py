"""Polling and the catch-up find what they have to, whatever else is broken at the same time.

The rows of these tests are committed and nobody is notified: only recovery can find them.
"""
import contextlib
import itertools
import time
from pathlib import Path

import pytest

from stack.clients.client import Sender, Session
from stack.clients.listeners import wait_listening
from stack.clients.state import DEGRADED, pass_seconds, wait_failing, wait_healthy
from stack.faults.network import Proxy

NAMES = itertools.count(1)
POLLED = DEGRADED + 2.0     # seconds: two polls, and the way to a client


def gets(client, payload, timeout=POLLED):
    notification = client.next(timeout=timeout)
    assert notification, f"{payload!r} did not come within {timeout} s"
    assert notification.payload == payload


def test_rows_that_no_question_could_see(stack, bus, server, proxy):
    """Both paths are dark, rows are committed, and then the pooled path is back alone.

    The first good answer of the pooled path has them already: nothing in the table is new from there on.
    """
    client, sender = bus(server)
    # one that has received nothing: Odoo shows it the last 50 s only, so it must be woken soon
    fresh = sender.session.subscribe([f"{sender.channel}-fresh"]).wait_subscribed()
    own = Sender(sender.session, stack.postgres, sender.channel)
    fresh_own = Sender(sender.session, stack.postgres, fresh.channels[0])
    try:
        wait_listening(stack.postgres, server, "bus")
        wait_healthy(server)
        sender.close()
        proxy.refuse()
        stack.pgbouncer.stop()
        wait_failing(server)
        pass_seconds(3)         # the first question is asked, and gets no answer
        own.insert("in the dark")
        fresh_own.insert("in the dark, too")
        stack.pgbouncer.start()
        event = time.monotonic()
        gets(client, "in the dark", timeout=15)
        gets(fresh, "in the dark, too", timeout=max(1.0, event + 15 - time.monotonic()))
    finally:
        stack.pgbouncer.running or stack.pgbouncer.start()
        proxy.heal()
        for each in (own, fresh_own, fresh):
            each.close()


@contextlib.contextmanager
def clients(stack, server, *databases):
    """A client and a sender in each database, in this order: {database: (client, sender)}."""
    with contextlib.ExitStack() as opened:
        found = {}
        for name in databases:
            session = Session(server, name)
            sender = Sender(session, stack.postgres, f"recovery-{time.monotonic_ns()}")
            last = sender.insert("seen before")
            client = opened.enter_context(session.subscribe([sender.channel], last=last))
            found[name] = client.wait_subscribed(), sender
            opened.callback(sender.close)
        yield found


@pytest.fixture
def second(stack):
    """The name of another database with an Odoo in it, which is gone after the test."""
    name = stack.database(f"second{next(NAMES)}")
    yield name
    stack.postgres.query(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def serve(odoo, proxy, databases, more=None, **options):
    return odoo(",".join(databases), **(more or {}), options={
        "imdispatcher_db_host": proxy.host, "imdispatcher_db_port": proxy.port, "max_cron_threads": 0, **options})


def test_a_channel_that_cannot_be_read(stack, second, odoo, proxy):
    """It costs neither what comes with it nor what comes behind, in its database and in the next."""
    server = serve(odoo, proxy, ["demo", second])
    with clients(stack, server, "demo", second) as found:
        wait_listening(stack.postgres, server, "bus")
        proxy.refuse()
        try:
            wait_failing(server)
            pass_seconds(DEGRADED)
            for number, channel in enumerate([None, "not JSON", "[" * 3000, '{"a": 1}', "7"] * 2):
                for name, (_, sender) in found.items():
                    stack.postgres.query(
                        "INSERT INTO bus_bus (channel, message, create_date)"
                        " VALUES (%s, '1', now() AT TIME ZONE 'UTC')", [channel], dbname=name)
                    sender.insert(number)
                for client, _ in found.values():
                    gets(client, number)
        finally:
            proxy.heal()


@pytest.mark.newest
def test_a_database_that_is_not_loaded_any_more(stack, second, odoo, proxy):
    """Odoo keeps as many loaded as their memory allows, here one; its clients in the others are connected still."""
    server = serve(odoo, proxy, ["demo", second], {"load": "base,web,bus_alt_connection,bus_test_one_loaded",
                                                   "addons": [Path(__file__).parent / "addons"]})
    with clients(stack, server, "demo", second) as found:
        wait_listening(stack.postgres, server, "bus")
        proxy.refuse()
        try:
            wait_failing(server)
            for number in range(3):
                for _, sender in found.values():
                    sender.insert(number)
                for client, _ in found.values():
                    # a long poll asks by itself
                    gets(client, number, **({} if server.facts.client == "WebSocket" else {"timeout": 60}))
        finally:
            proxy.heal()


@pytest.fixture
def unresponsive(stack):
    """Databases that the pooler reaches by a way of their own, which can be frozen: (their names, the proxy)."""
    proxy = Proxy((stack.postgres.host, stack.postgres.port))
    names = [stack.database(f"second{next(NAMES)}") for _ in range(3)]
    for name in names:
        stack.pgbouncer.databases[name] = f"host={proxy.host} port={proxy.port}"
    stack.pgbouncer.reload()
    yield names, proxy
    for name in names:
        del stack.pgbouncer.databases[name]
    proxy.heal()
    proxy.cut()
    stack.pgbouncer.reload()
    stack.pgbouncer.command("RECONNECT")
    proxy.close()
    for name in names:
        stack.postgres.query(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.needs("message_type")      # before 15 channels name no database: who is woken may be of any
def test_databases_that_do_not_answer(stack, unresponsive, odoo, proxy):
    """The others' messages come as ever, while they are polled and when the bus catches up."""
    names, way = unresponsive
    server = serve(odoo, proxy, [*names, "demo"])
    with clients(stack, server, *names, "demo") as found:
        client, sender = found["demo"]
        wait_listening(stack.postgres, server, "bus")
        wait_healthy(server)
        way.freeze()
        proxy.refuse()
        try:
            wait_failing(server)
            pass_seconds(3)         # polling has begun
            for number in range(3):
                sender.insert(number)
                gets(client, number)
            sender.insert("in the dark")
            proxy.heal()
            gets(client, "in the dark")
            # and their own when they answer again
            for name in names:
                found[name][1].insert("at last")
            way.heal()
            for name in names:
                gets(found[name][0], "at last", timeout=30)
        finally:
            way.heal()
            proxy.heal()


def test_a_database_that_was_dropped(stack, second, odoo, proxy):
    """Its clients are still there when the bus catches up, which does not wait for them."""
    server = serve(odoo, proxy, [second, "demo"])
    with clients(stack, server, second, "demo") as found:
        client, sender = found["demo"]
        wait_listening(stack.postgres, server, "bus")
        wait_healthy(server)
        proxy.refuse()
        try:
            wait_failing(server)
            found[second][1].close()
            stack.postgres.query(f"DROP DATABASE {second} WITH (FORCE)")
            sender.insert("in the dark")
            since = server.log_size()
        finally:
            proxy.heal()
        server.wait_log("The bus listener is listening again on ", timeout=DEGRADED, since=since)
        gets(client, "in the dark")
        assert wait_healthy(server)["state"] == "listening"
