"""The seam: an Odoo in which it has moved keeps its own bus; any other part that has moved costs nothing but that part.

Takes 3 min.
"""
import re
from pathlib import Path

import pytest
import requests

from stack.clients.listeners import direct, wait_listening
from stack.clients.state import lines
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
    ("loop", "loop"), ("ImDispatch", "dispatcher"), ("db_connect", "db_connect"), ("subscribers", "subscribers"),
    ("run, which raises", "nobody looks at this")], ids=lambda value: value.split(",")[0])
def test_what_the_main_job_needs_has_moved(keeps_its_own_bus, moved, named):
    """Half of the main job in place would be worse than none."""
    server = keeps_its_own_bus(moved)
    # each process of the server loads the addon: one line each, and it is the same one
    errors = re.findall(r" (\d+) ERROR (.*)$", server.log_text(), re.M)
    assert len({pid for pid, _ in errors}) == len(errors) == 2, errors
    assert all(named in line for _, line in errors), errors
    assert "Traceback" not in server.log_text()


@pytest.mark.parametrize("moved, named, workers", [
    ("Application", "health", 2),
    pytest.param("cron_thread", "cron", 0, marks=pytest.mark.needs("cron_listeners")),
    pytest.param("WorkerCron", "cron", 2, marks=pytest.mark.needs("cron_listeners")),
    ("Worker", "notifier", 2),
    ("check_limits, which raises", "notifier", 2),
    pytest.param("WebsocketConnectionHandler", "websockets", 2, marks=pytest.mark.needs("websocket")),
    pytest.param("history", "history", 2, marks=pytest.mark.needs("websocket")),
], ids=lambda value: str(value).split(",")[0])
def test_another_part_has_moved(odoo, bus, postgres, moved, named, workers):
    """Behind the pooler the main job works without it, and one line names it in each process that lacks it."""
    server = odoo(workers=workers, load="base,web,bus_test_order", addons=[ADDONS],
                  env={"BUS_TEST_ORDER": "bus_test_moved,bus_alt_connection", "BUS_TEST_MOVED": moved})
    client, sender = bus(server)
    wait_listening(postgres, server, "bus")
    for number in range(5):
        sender.send_orm(number)
        assert client.next().payload == number
    pid, = wait_listening(postgres, server, "bus")
    postgres.query("SELECT pg_terminate_backend(%s)", [pid])
    server.wait_log("The bus listener is listening again on ")
    sender.send_orm("again")
    assert client.next().payload == "again"
    own = [line for level in ("WARNING", "ERROR") for line in lines(server, f" {level} ")]
    # of the loss, which is one of the bus
    own = [line for line in own if "The bus listener lost its connection" not in line]
    said = [re.search(rf" (\d+) WARNING .*\b{named} does not fit", line) for line in own]
    assert said and all(said), f"nothing, or something else, was said: {own}"
    assert len({line[1] for line in said}) == len(said), f"not one line in a process: {own}"
    assert "Traceback" not in server.log_text()


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
