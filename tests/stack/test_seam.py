"""The seam: an Odoo in which it has moved keeps its own bus, and the shape that the dispatcher has after series 19."""
import re
from pathlib import Path

import pytest
import requests

from stack.clients.client import compact
from stack.clients.listeners import direct, wait_listening
from stack.process import DEADLINE, wait_until

ADDONS = Path(__file__).parent / "addons"


@pytest.fixture
def keeps_its_own_bus(odoo, bus, postgres):
    """Start an Odoo that has changed: its own bus works, and nothing of this addon listens."""
    def start(moved):
        # straight to PostgreSQL, where the bus of Odoo itself works
        server = odoo(workers=2, pooled=False, load="base,web,bus_test_order", addons=[ADDONS],
                      env={"BUS_TEST_ORDER": "bus_test_moved,bus_alt_connection", "BUS_TEST_MOVED": moved})
        client, sender = bus(server)
        server.wait_log("listen imbus")
        sender.send_orm("its own")
        assert client.next().payload == "its own"
        assert not direct(postgres, server)
        return server
    return start


@pytest.mark.parametrize("moved, named", [
    ("loop", "ImDispatch.loop"),
    ("ImDispatch", "bus.models.bus.ImDispatch"),
    ("db_connect", "odoo.sql_db.db_connect"),
    ("cron_thread", "ThreadedServer.cron_thread"),
    ("subscribers", "table of subscribers in the bus dispatcher"),
])
def test_it_has_moved(keeps_its_own_bus, facts, moved, named):
    server = keeps_its_own_bus(moved)
    # each process of the server loads the addon: one line each, and it is the same one
    lines = re.findall(r" (\d+) ERROR (.*)$", server.log_text(), re.M)
    assert len({pid for pid, _ in lines}) == len(lines) == 2, lines
    for _, line in lines:
        assert named in line
        assert f"Odoo {facts.number}." in line
    assert "Traceback" not in server.log_text()


def test_what_raises_while_it_is_loaded_leaves_all_as_it_was(keeps_its_own_bus):
    """Half of it in place would be worse than none. It is met late, in the notifier's part."""
    server = keeps_its_own_bus("check_limits")
    assert requests.get(f"{server.url}/bus_alt_connection/health", timeout=DEADLINE).status_code == 404
    log = server.log_text()
    assert log.count("Bus Alt Connection could not be loaded.") == log.count("RuntimeError: nobody looks at this") == 2


def test_no_sources_are_to_be_had(odoo, bus, postgres):
    """As where all of Odoo is compiled: what it is like is seen all the same, also which cron listeners it has."""
    server = odoo(load="base,web,bus_test_order", addons=[ADDONS],
                  env={"BUS_TEST_ORDER": "bus_test_compiled,bus_alt_connection"})
    client, sender = bus(server)
    wait_listening(postgres, server, "bus")
    sender.send_orm("compiled")
    assert client.next().payload == "compiled"

    def ask():
        return requests.get(f"{server.url}/bus_alt_connection/health?scope=host", timeout=DEADLINE)
    wait_until(lambda: ask().ok, DEADLINE, lambda: f"the health route says {ask().text}")
    assert "Traceback" not in server.log_text()


@pytest.mark.needs("stop_event")
def test_who_waits_is_woken_when_the_server_stops(odoo, bus):
    """As in series 15, whose dispatcher finds no server to ask for it when it is loaded server-wide.

    Also where another addon wraps the dispatcher, and where no function to NOTIFY with is named.
    """
    server = odoo(load="base,web,bus_test_order", addons=[ADDONS],
                  env={"BUS_TEST_ORDER": "bus_test_wakeup,bus_alt_connection"})
    bus(server)
    server.wait_log("bus listener is listening on")
    server.stop()
    assert server.wait_log(r"woken up, the loop is told to end: (\w+)")[1] == "True"
