"""The cron listeners through the same events: no thread ends, no worker stays deaf, triggers stay quick.

Takes 1 min.
"""
from pathlib import Path

import pytest

from stack.clients.flow import when_serves
from stack.clients.jobs import QUICK, a_job
from stack.clients.listeners import wait_listening

pytestmark = pytest.mark.needs("cron_listeners")


@pytest.fixture
def trigger(server, bus, proxy):
    with a_job(server, bus) as run:
        yield run
        proxy.heal()


def listening(stack, server):
    return wait_listening(stack.postgres, server, "cron")


def test_backend_terminated(trigger, server, stack):
    for _ in range(2):
        pid, = listening(stack, server)
        stack.postgres.query("SELECT pg_terminate_backend(%s)", [pid])
        assert listening(stack, server) != [pid]
        assert trigger() < QUICK


def test_postgresql_restarts(trigger, server, stack):
    stack.postgres.restart("immediate")
    when_serves(stack.pgbouncer)
    listening(stack, server)
    assert trigger() < QUICK


def test_frozen_proxy(trigger, server, proxy, stack):
    listening(stack, server)
    since = server.log_size()
    proxy.freeze()
    server.wait_log("cron listener lost its connection .* silent", since=since)
    # degraded, not dark
    assert trigger() < QUICK
    proxy.heal()
    server.wait_log("cron listener is listening again", since=since)
    assert trigger() < QUICK


def test_triggered_while_nobody_listened(trigger, server, proxy, stack):
    """A trigger that fell into the gap is found when the listener is back, not a minute later."""
    listening(stack, server)
    proxy.refuse()
    wait_listening(stack.postgres, server, "cron", count=0)
    proxy.heal()
    assert trigger() < QUICK


@pytest.mark.needs("cron_thread_queries")
def test_no_thread_ends(stack, odoo, bus):
    """Upstream's own query on its slow clock fails while PostgreSQL is away; its thread goes on all the same."""
    # without a database by name it asks which there are; without a pooler, which would let it wait
    server = odoo(pooled=False, load="base,web,bus_alt_connection,bus_test_hurry",
                  addons=[Path(__file__).parent / "addons"], options={"db_name": None, "dbfilter": "^demo$"})
    with a_job(server, bus) as trigger:
        assert trigger() < QUICK
        since = server.log_size()
        stack.postgres.stop("fast")
        try:
            server.wait_log("A cron thread failed .* and goes on", since=since)
        finally:
            stack.postgres.start()
        when_serves(stack.pgbouncer)
        listening(stack, server)
        assert trigger() < QUICK
