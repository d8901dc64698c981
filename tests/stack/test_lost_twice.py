"""A listener that is lost again while it makes up for its loss: all clients have what they missed within a minute.

The row is committed and nobody is notified of it, so that only a look at the table can find it. Takes 2 min.
"""
import contextlib
import time

import pytest

from stack.clients.client import Sender, Session
from stack.clients.listeners import direct, wait_listening
from stack.clients.state import pass_seconds, wait_failing, wait_healthy
from stack.process import DEADLINE, wait_until

CLIENTS = 250       # so many that waking them takes a while
WITHIN = 60.0       # seconds
HOWS = ["cut", "refused for a while", "killed", "cut twice"]


@pytest.fixture
def crowd(stack, odoo, proxy):
    """An Odoo whose listeners go through `proxy`, its clients, who are all subscribed, and a sender."""
    # connections for all of them: of long polls that find none Odoo makes errors
    server = odoo(workers=2, options={"imdispatcher_db_host": proxy.host, "imdispatcher_db_port": proxy.port,
                                      "max_cron_threads": 0, "db_maxconn": CLIENTS + 50})
    session = Session(server, "demo")
    sender = Sender(session, stack.pgbouncer, f"crowd-{time.monotonic_ns()}")
    last = sender.insert("seen before")
    with contextlib.ExitStack() as opened:
        opened.callback(sender.close)
        opened.callback(proxy.heal)
        clients = []
        for _ in range(CLIENTS):
            clients.append(opened.enter_context(session.subscribe([sender.channel], last=last)))
            if len(clients) % 25 == 0:      # in batches that a small machine bears
                for client in clients:
                    client.wait_subscribed()
        wait_listening(stack.postgres, server, "bus")
        wait_healthy(server)
        yield server, clients, sender
        for client in clients:      # all at once: closing waits for each
            client.closing.set()
            client.abort()


def lacking(clients, number):
    return [client for client in clients if number not in [n.id for n in client.received]]


@pytest.mark.timeout(600)
def test_lost_while_the_clients_are_woken(stack, proxy, crowd, record_property):
    server, clients, sender = crowd
    for how in HOWS:
        proxy.refuse()
        wait_failing(server)
        number = sender.insert(how)
        proxy.heal()
        wait_until(lambda number=number: len(lacking(clients, number)) < CLIENTS, DEADLINE, "nobody gets anything")
        lose(how, stack, server, proxy)
        event = time.monotonic()
        record_property(f"lacked it at the second loss, {how}", len(lacking(clients, number)))
        wait_until(lambda number=number: not lacking(clients, number), WITHIN, lambda how=how, number=number: (
            f"{how}: {len(lacking(clients, number))} of {CLIENTS} never got it, one of them with the errors "
            f"{lacking(clients, number)[0].errors[-2:]}"))
        record_property(f"the last has it after (s), {how}", round(time.monotonic() - event, 1))
        wait_healthy(server)
    for client in clients:
        received = [n.id for n in client.received]
        assert len(received) == len(set(received)), "something came twice"


def lose(how, stack, server, proxy):
    if how == "killed":
        for pid, *_ in direct(stack.postgres, server, "bus"):
            stack.postgres.query("SELECT pg_terminate_backend(%s)", [pid])
        return
    proxy.refuse()
    if how == "refused for a while":
        pass_seconds(2)
    proxy.heal()
    if how == "cut twice":
        wait_listening(stack.postgres, server, "bus")
        proxy.cut()
