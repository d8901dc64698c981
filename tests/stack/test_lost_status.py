"""A LISTEN that fails with "could not access status of transaction" works again by itself, in every listener.

PostgreSQL before its minors of November 2025 fails so until its NOTIFY queue is asked how full it is. Takes 1 min.
"""
import pytest

from stack.clients.flow import Flow
from stack.clients.jobs import QUICK, a_job
from stack.clients.listeners import wait_listening
from stack.clients.state import wait_healthy
from stack.faults.wire import LostStatus
from stack.process import DEADLINE, wait_until

WITHIN = 30.0       # seconds


@pytest.fixture
def server_of(stack, odoo):
    """`server_of(...)` starts an Odoo on a server with that fault: (the server, the fault)."""
    fault = LostStatus((stack.postgres.host, stack.postgres.port))

    def start(workers, **options):
        # the pooler leads there as well: it is one server, wherever it is asked
        return odoo(workers=workers, options={
            "imdispatcher_db_host": fault.host, "imdispatcher_db_port": fault.port,
            "imdispatcher_db_sslmode": "disable", **options}), fault

    with stack.pgbouncer.changed(target=(fault.host, fault.port)):
        yield start
    fault.close()


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_bus(stack, server_of, workers):
    server, fault = server_of(workers, max_cron_threads=0)
    with Flow(server, stack.pgbouncer, stack.postgres) as flow:
        wait_listening(stack.postgres, server, "bus", timeout=WITHIN)
        wait_healthy(server)
        flow.check_pushed()
        # and when it is lost, and its new LISTEN fails
        pid, = wait_listening(stack.postgres, server, "bus")
        fault.again()
        stack.postgres.query("SELECT pg_terminate_backend(%s)", [pid])
        wait_until(lambda: fault.mended.is_set(), WITHIN, lambda: f"nobody asks; {fault.failed} LISTENs failed")
        wait_until(lambda: wait_listening(stack.postgres, server, "bus") != [pid], WITHIN, "it does not come back")
        wait_healthy(server)
        flow.check_pushed()
        flow.check()


@pytest.mark.needs("cron_listeners")
@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_cron_alone(stack, server_of, bus, workers):
    """Before anybody has come there is no listener of the bus that could mend it."""
    server, fault = server_of(workers, max_cron_threads=2)
    pids = wait_listening(stack.postgres, server, "cron", count=2, timeout=WITHIN)
    fault.again()
    stack.postgres.query("SELECT pg_terminate_backend(pid) FROM unnest(%s) pid", [pids])
    wait_until(lambda: fault.mended.is_set(), WITHIN, lambda: f"nobody asks; {fault.failed} LISTENs failed")
    wait_until(lambda: not {*pids} & {*wait_listening(stack.postgres, server, "cron", count=2)}, DEADLINE,
               "they do not come back")
    with a_job(server, bus) as trigger:
        assert trigger() < QUICK
