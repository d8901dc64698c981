"""A LISTEN that is gone while its connection stands is noticed by the next heartbeat, whatever removed it."""
import time

import pytest

from stack.clients.flow import Flow
from stack.clients.jobs import QUICK, a_job
from stack.clients.listeners import wait_listening
from stack.clients.state import instant, wait_healthy
from stack.faults.intruder import Intruder

NOTICED = 15.0      # seconds


@pytest.fixture
def intruder(stack):
    intruder = Intruder((stack.postgres.host, stack.postgres.port))
    yield intruder
    intruder.close()


def options(intruder):
    return {"imdispatcher_db_host": intruder.host, "imdispatcher_db_port": intruder.port,
            "imdispatcher_db_sslmode": "disable"}


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
@pytest.mark.parametrize("statement", ["UNLISTEN imbus", "UNLISTEN *", "DISCARD ALL"])
def test_bus(stack, odoo, intruder, workers, statement):
    server = odoo(workers=workers, options={**options(intruder), "max_cron_threads": 0})
    with Flow(server, stack.pgbouncer, stack.postgres) as flow:
        wait_listening(stack.postgres, server, "bus")
        wait_healthy(server)
        since = server.log_size()
        event = time.monotonic()
        assert intruder.run(statement) == 1
        flow.wait_received(1, timeout=NOTICED, since=event)     # and with it what came before
        instant(flow)
        assert flow.slowest() < NOTICED
        wait_healthy(server)
        flow.check()
        server.wait_log("The bus listener lost its connection to ", since=since)
        server.wait_log("The bus listener is listening again on ", since=since)


@pytest.mark.needs("cron_listeners")
@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_cron(stack, odoo, bus, intruder, workers):
    server = odoo(workers=workers, options=options(intruder))
    with a_job(server, bus) as trigger:
        wait_listening(stack.postgres, server, "cron")
        assert trigger() < QUICK
        since = server.log_size()
        intruder.run("UNLISTEN cron_trigger")
        assert trigger() < NOTICED
        server.wait_log("The cron listener is listening again on ", since=since)
        assert trigger() < QUICK
