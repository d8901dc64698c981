"""A websocket whose query fails ends, as its client sees it already: nothing of it stays in the server.

The pooler is away, and with it every query of a websocket; the listener and PostgreSQL are not, so that a NOTIFY has
every websocket send one.
"""
import contextlib
import itertools

import pytest
import websocket

from bench.soak import Soak
from stack.clients.client import Sender, Session, subscription
from stack.clients.listeners import wait_listening
from stack.process import DEADLINE, wait_until

pytestmark = pytest.mark.needs("websocket")

CLIENTS, OUTAGES = 5, 2
NAMES = itertools.count(1)


@pytest.fixture
def pooler(stack):
    yield stack.pgbouncer
    stack.pgbouncer.running or stack.pgbouncer.start()


def pairs(server):
    """How many sockets in pairs the process has: two a websocket, and those of the addon."""
    return Soak.descriptors(server.evented_pid)[1].count("pair")


def test_nothing_is_left_behind(stack, serving, pooler):
    session = Session(serving, "demo")
    sender = Sender(session, stack.postgres, f"websockets-{next(NAMES)}")
    last = sender.send_sql("the last one seen before")
    with contextlib.ExitStack() as opened:
        opened.callback(sender.close)
        clients = [opened.enter_context(session.subscribe([sender.channel], last=last)) for _ in range(CLIENTS)]
        for client in clients:
            client.wait_subscribed()
        backend, = wait_listening(stack.postgres, serving, "bus")
        before = pairs(serving)
        for outage in range(OUTAGES):
            pooler.stop()
            lost = [len(client.errors) for client in clients]
            sender.send_sql(outage)
            for client, errors in zip(clients, lost, strict=True):
                wait_until(lambda client=client, errors=errors: len(client.errors) > errors, DEADLINE, "not closed")
            pooler.start()
            for client in clients:
                notification = client.next()
                assert notification and notification.payload == outage
        if serving.facts.closes_its_pair:
            wait_until(lambda: pairs(serving) <= before, DEADLINE,
                       lambda: f"{before} sockets in pairs before, {pairs(serving)} after")
        # A subscriber that the dispatcher has not forgotten lacks this one for ever.
        since = serving.log_size()
        sender.insert("not notified")
        stack.postgres.query("SELECT pg_terminate_backend(%s)", [backend])
        assert int(serving.wait_log(r"listening again .* (\d+) subscriber", since=since)[1]) <= CLIENTS


def test_who_cannot_subscribe_is_told_to_connect_again(stack, serving, pooler):
    """Else it stays open and is sent nothing."""
    session = Session(serving, "demo")
    cookie = f"session_id={session.http.cookies.get('session_id')}"
    client = websocket.create_connection(
        serving.evented_url.replace("http", "ws", 1) + "/websocket", cookie=cookie, origin=serving.url,
        timeout=30)     # less than the 40 s after which the server sends a ping
    with contextlib.closing(client):
        pooler.stop()
        client.send(subscription(["subscribes in vain"], 0))
        code, data = client.recv_data()
        assert code == websocket.ABNF.OPCODE_CLOSE
        # "try later": upstream's client connects again after any code but 1000
        assert int.from_bytes(data[:2], "big") == 1013
