"""The pooler is pointed to a new primary while the old server goes on: a planned switch, blue and green, a moved VIP.

Nothing shows on the listening connections themselves: the old server keeps them, and answers. The new server is a
promoted copy of the old, so that even what identifies a cluster is the same on both.
"""
import contextlib
import itertools
import signal
import time

import psycopg2
import pytest

from stack.clients.flow import Flow
from stack.clients.jobs import QUICK, a_job
from stack.clients.listeners import wait_listening
from stack.clients.state import DEGRADED, health, instant, lines, pass_seconds, wait_failing, wait_healthy
from stack.faults.move import Move
from stack.process import wait_until

NOTICED = 40.0      # seconds: the pooled path is asked every half minute, with jitter
COPIES = itertools.count(1)
newest = pytest.mark.newest


@pytest.fixture
def move(stack):
    copy = stack.add(stack.postgres.standby(stack.folder / f"copy-{next(COPIES)}"))
    move = Move(stack.pgbouncer, stack.postgres, copy.start())
    yield move
    with contextlib.suppress(psycopg2.Error):       # where it is not paused
        move.pooler.command("RESUME")
    move.point_to(move.old)
    move.pooler.command("RECONNECT")
    move.new.end_by_force()


@pytest.fixture
def job(facts, bus):
    """`job(server)`: triggers a job and says how many seconds it took, or nothing where cron does not listen."""
    with contextlib.ExitStack() as jobs:
        yield lambda server: jobs.enter_context(a_job(server, bus)) if facts.cron_listeners else None


def nothing_lost(flow, server):
    """All that is in the new server's table arrived, once and in order.

    What the old server committed after its copy was promoted is on the old alone: the copy's affair, not the bus's.
    """
    flow.stop()
    flow.postgres = server
    rows = flow.rows()
    assert rows
    for client in flow.clients:
        wait_until(lambda client=client: set(rows) <= {n.id for n in flow.received(client)}, 30,
                   lambda client=client: f"lost: {sorted(set(rows) - {n.id for n in flow.received(client)})}")
        received = [n.id for n in flow.received(client)]
        assert received == sorted(set(received)), "twice, or out of order"


@pytest.mark.parametrize("how, workers", [
    ("reconnect", 0), pytest.param("pause", 2, marks=newest), pytest.param("pause", 0, marks=newest), ("reconnect", 2)])
def test_listeners_follow(stack, odoo, move, job, how, workers):
    options = {"imdispatcher_db_host": f"{move.old.host},{move.new.host}",
               "imdispatcher_db_port": f"{move.old.port},{move.new.port}"}
    server = odoo(workers=workers, options=options)
    trigger = job(server)
    with Flow(server, stack.pgbouncer, move.old) as flow:
        wait_listening(move.old, server, "bus")
        wait_healthy(server)
        event = move.now(how)
        wait_listening(move.new, server, "bus", timeout=NOTICED)
        wait_healthy(server, timeout=NOTICED - (time.monotonic() - event))
        wait_listening(move.old, server, "bus", count=0)
        instant(flow)
        if trigger:
            wait_listening(move.new, server, "cron", timeout=NOTICED)
            assert trigger() < QUICK
        nothing_lost(flow, move.new)


@pytest.mark.parametrize("how, workers", [("reconnect", 2), pytest.param("pause", 0, marks=newest)])
def test_with_one_address_it_is_said(stack, odoo, move, job, how, workers):
    server = odoo(workers=workers)
    trigger = job(server)
    with Flow(server, stack.pgbouncer, move.old) as flow:
        wait_listening(move.old, server, "bus")
        wait_healthy(server)
        since = server.log_size()
        event = move.now(how)
        said = wait_failing(server, timeout=NOTICED, cause="other server")
        assert "imdispatcher_db_host" in said["remedy"]
        for name in ["bus", "cron"] if trigger else ["bus"]:
            server.wait_log(rf" ERROR .*The {name} listener does not receive NOTIFYs: it listens on "
                            rf"{move.old.host}:{move.old.port}.*, which is another server than the one that NOTIFYs "
                            r"reach.*\. Set imdispatcher_db_host.*Polling every 5 s\.", since=since,
                            timeout=max(1.0, NOTICED - (time.monotonic() - event)))
        polling = time.monotonic()
        flow.wait_received(3, timeout=DEGRADED + 5, since=polling)
        assert flow.slowest(since=polling) < DEGRADED
        if trigger:
            # the job waits for the next poll of cron, and what it sends for the next of the bus
            assert trigger() < 2 * DEGRADED
        nothing_lost(flow, move.new)
        assert health(server)[0] == 503, "still, as nobody has mended it"
        assert len(lines(server, "The bus listener does not receive", since)) == 1


@pytest.mark.parametrize("fault, workers", [("frozen", 0), pytest.param("away", 2, marks=newest)])
def test_a_pooled_path_that_does_not_answer_changes_nothing(stack, odoo, facts, fault, workers):
    server = odoo(workers=workers)
    with Flow(server, stack.pgbouncer, stack.postgres) as flow:
        names = ["bus", "cron"] if facts.cron_listeners else ["bus"]
        before = [wait_listening(stack.postgres, server, name) for name in names]
        wait_healthy(server)
        since = server.log_size()
        if fault == "frozen":
            stack.pgbouncer.signal(signal.SIGSTOP)
        else:
            stack.pgbouncer.stop()
        try:
            pass_seconds(NOTICED)       # it is asked meanwhile
            assert health(server)[0] == 200
        finally:
            if fault == "frozen":
                stack.pgbouncer.signal(signal.SIGCONT)
            else:
                stack.pgbouncer.start()
        flow.wait_received(2, since=time.monotonic())
        instant(flow)
        flow.check()
        assert [wait_listening(stack.postgres, server, name) for name in names] == before
        assert not lines(server, "listener", since)
