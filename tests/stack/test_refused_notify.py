"""`ODOO_NOTIFY_FUNCTION` with a whitelist of channels: it is said once, with a remedy, and messages are delivered.

What verifies a listener is a NOTIFY on a channel of its own, which such a function refuses. Takes 90 s.
"""
import time

import pytest

from stack.clients.flow import Flow
from stack.clients.state import health, lines, wait_failing
from stack.process import wait_until

pytestmark = pytest.mark.needs("notify_function")

SAID = 60.0         # seconds
DELIVERED = 60.0
FUNCTION = "only_odoos_channels"


@pytest.fixture
def whitelist(postgres):
    postgres.query(
        f"CREATE FUNCTION public.{FUNCTION}(channel text, payload text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN"
        " IF channel NOT IN ('imbus', 'cron_trigger') THEN RAISE EXCEPTION 'channel % is not allowed', channel; END IF;"
        " PERFORM pg_catalog.pg_notify(channel, payload); END $$")
    yield FUNCTION
    postgres.query(f"DROP FUNCTION public.{FUNCTION}(text, text)")


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_a_whitelist(odoo, pgbouncer, postgres, whitelist, workers):
    server = odoo(workers=workers, env={"ODOO_NOTIFY_FUNCTION": whitelist}, options={"max_cron_threads": 0})
    with Flow(server, pgbouncer, postgres, every=1.0) as flow:
        begun = time.monotonic()
        wait_until(lambda: said(server), SAID, "nothing is said of it")
        line, = said(server)
        assert "ODOO_NOTIFY_FUNCTION" in line, "no remedy"
        answer = wait_failing(server)
        assert "ODOO_NOTIFY_FUNCTION" in answer["remedy"], answer
        flow.wait_received(5, since=begun)
        wait_until(lambda: time.monotonic() > begun + SAID, 2 * SAID, "time stands still")
        assert health(server)[0] == 503
        flow.check()
        assert flow.slowest() < DELIVERED
        assert 1 <= len(said(server)) <= 2, "more than a line a minute"


def said(server):
    """What is worse than information of the listener of the bus."""
    return [line for level in ("WARNING", "ERROR") for line in lines(server, f" {level} ") if "bus listener" in line]
