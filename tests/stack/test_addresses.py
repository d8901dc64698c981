"""Each address of a name is an endpoint: where the first is a standby's, the listeners go on to the next.

As a name of a cluster's hosts, or of a service that has all of them. Takes 1 min.
"""
import contextlib
import socket

import pytest

from stack.clients.flow import Flow
from stack.clients.listeners import wait_listening
from stack.clients.state import wait_healthy
from stack.faults.hold import ADDONS, NAMING, name_of
from stack.faults.network import Proxy
from stack.process import wait_until

WITHIN = 20.0       # seconds
FIRST, SECOND = "127.0.0.2", "127.0.0.1"


@pytest.fixture
def two(stack, standby):
    """(host, port) of a name with two addresses: the first is the standby's."""
    with contextlib.ExitStack() as opened:
        listeners = {}
        while SECOND not in listeners:      # the port has to be free on both
            listeners = {FIRST: socket.create_server((FIRST, 0))}
            with contextlib.suppress(OSError):
                listeners[SECOND] = socket.create_server((SECOND, listeners[FIRST].getsockname()[1]))
        for address, server in ((FIRST, standby), (SECOND, stack.postgres)):
            proxy = Proxy((server.host, server.port), listener=listeners[address])
            opened.callback(proxy.close)
        yield name_of(FIRST, SECOND), proxy.port


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_a_standby_first(stack, odoo, facts, two, tmp_path, workers):
    server = odoo(workers=workers, load=f"base,web,{NAMING},bus_alt_connection", addons=[ADDONS],
                  env={"BUS_TEST_FOLDER": str(tmp_path)},
                  options={"imdispatcher_db_host": two[0], "imdispatcher_db_port": two[1]})
    with Flow(server, stack.pgbouncer, stack.postgres) as flow:
        for _ in range(2):
            pid, = wait_listening(stack.postgres, server, "bus", timeout=WITHIN)
            wait_healthy(server)
            flow.check_pushed()
            stack.postgres.query("SELECT pg_terminate_backend(%s)", [pid])
            wait_until(lambda pid=pid: wait_listening(stack.postgres, server, "bus") != [pid], WITHIN, "not back")
        if facts.cron_listeners:
            wait_listening(stack.postgres, server, "cron", timeout=WITHIN)
        flow.check()
