"""A pooler that serves LISTEN itself, as PgDog does: without a setting the listener stays up, for all its heartbeats.

A stand-in, from PgDog's source: older versions run the first of several statements alone, newer ones ask a backend of
the pool, which listens to nothing, what is listened to. PgDog itself was not run. Takes 2 min.
"""
import pytest

from stack.clients.flow import Flow
from stack.clients.listeners import direct
from stack.clients.state import lines, pass_seconds, wait_healthy
from stack.faults.wire import ServesListen

WATCHED = 20.0      # seconds: several heartbeats
UNKNOWN = "nobody_listens"


@pytest.fixture
def pooler(stack, request):
    stack.postgres.query(f"CREATE FUNCTION public.{UNKNOWN}() RETURNS SETOF text LANGUAGE sql AS"
                         " $$ SELECT NULL::text WHERE false $$")
    pooler = ServesListen((stack.postgres.host, stack.postgres.port), request.param, f"public.{UNKNOWN}")
    yield pooler
    pooler.close()
    stack.postgres.query(f"DROP FUNCTION public.{UNKNOWN}()")


@pytest.mark.parametrize("pooler", [True, False], ids=["the first statement alone", "all statements"], indirect=True)
@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_the_listener_stays_up(stack, odoo, pooler, workers):
    server = odoo(workers=workers, direct=False, options={
        "db_host": pooler.host, "db_port": pooler.port, "db_sslmode": "disable", "max_cron_threads": 0})
    with Flow(server, stack.postgres, stack.postgres) as flow:
        wait_healthy(server)
        since = server.log_size()
        before = [row[0] for row in direct(stack.postgres, server, "bus")]
        flow.check_pushed()
        pass_seconds(WATCHED)
        assert not lines(server, "listener", since), lines(server, "listener", since)[:2]
        assert [row[0] for row in direct(stack.postgres, server, "bus")] == before and len(before) == 1
        flow.check_pushed()
        flow.check()
