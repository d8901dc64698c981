"""A listener that hears nothing costs PostgreSQL nothing but a look at its connection: no transaction id, no NOTIFY.

Its own process has a thread more, and some address space.
"""
import itertools

import pytest

from bench.setups import DATABASE
from bench.startup import of_a_cron_worker
from stack.clients.listeners import wait_listening
from stack.clients.state import pass_seconds, wait_healthy
from stack.process import wait_until

NAMES = itertools.count(1)
IDLE = 30       # seconds; whatever a listener asks by itself it asks at least once in 25
NEXT_ID = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"       # takes none itself


@pytest.fixture
def quiet(stack):
    """A database in which no job of Odoo's is due, on a server that does nothing by itself."""
    name = stack.database(f"quiet{next(NAMES)}")
    stack.postgres.query("UPDATE ir_cron SET nextcall = '2100-01-01'", dbname=name)
    stack.postgres.query("ALTER SYSTEM SET autovacuum = off")
    stack.postgres.query("SELECT pg_reload_conf()")
    yield name
    stack.postgres.query("ALTER SYSTEM RESET autovacuum")
    stack.postgres.query("SELECT pg_reload_conf()")
    stack.postgres.query(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.newest)], ids=["threaded", "prefork"])
def test_no_transaction_id(stack, odoo, bus, facts, quiet, workers, record_property):
    """All checks together, the look at the table of notifications too: one Odoo with its bus, and cron if it has."""
    server = odoo(quiet, workers=workers)
    bus(server, quiet)
    wait_listening(stack.postgres, server, "bus")
    if facts.cron_listeners:
        wait_listening(stack.postgres, server, "cron")
    wait_healthy(server)
    stack.postgres.query("CHECKPOINT")

    def rests():
        before = stack.postgres.query(NEXT_ID)
        pass_seconds(2)         # what the start-up of Odoo had to write
        return stack.postgres.query(NEXT_ID) == before
    wait_until(rests, 40, "PostgreSQL does not come to rest: someone takes transaction ids all the time")
    before = stack.postgres.query(NEXT_ID)[0][0]
    pass_seconds(IDLE)
    taken = stack.postgres.query(NEXT_ID)[0][0] - before
    record_property(f"transaction ids in {IDLE} s", taken)
    assert not taken


@pytest.mark.needs("cron_listeners")
def test_a_thread_and_its_address_space(stack, record_property):
    """Of a cron worker, which listens in a thread and not in a greenlet. The limit is what Odoo's own
    limit_memory_soft bears easily: it counts address space."""
    stack.database(DATABASE)
    (without, threads), (with_addon, with_its_own) = (of_a_cron_worker(stack, name) for name in ("direct", "addon"))
    record_property("MiB more", with_addon - without)
    assert with_its_own <= threads + 1
    assert with_addon - without < 80
