"""Other addons that override the dispatcher or bus.bus go on working, loaded before this one and after it."""
import json
import re
from pathlib import Path

import pytest

from stack.clients.listeners import wait_listening
from stack.clients.state import lines, wait_healthy
from stack.process import DEADLINE, wait_until

ADDONS = Path(__file__).parent / "addons"
ORDERS = {"before": "{},bus_alt_connection", "after": "bus_alt_connection,{}"}


@pytest.fixture(scope="module")
def wrapped(stack):
    """A database with the addon that overrides bus.bus."""
    name = stack.database("wrapped")
    stack.odoo(name="odoo-wrapped").run_once(name, "-i", "bus_test_wrap", addons=[ADDONS])
    return name


def start(odoo, database, addon, order, workers):
    return odoo(database, workers=workers, load="base,web,bus_test_order", addons=[ADDONS],
                env={"BUS_TEST_ORDER": ORDERS[order].format(addon)})


def check(server, bus, postgres, database):
    client, sender = bus(server, database)
    wait_listening(postgres, server, "bus")
    for number in range(3):
        sender.send_orm(number)
        assert client.next().payload == number
    overridden = server.wait_log(r"overridden loop on a dispatch that everyone has: (\w+)")
    assert overridden[1] == "True"
    assert "ERROR" not in server.log_text()


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
@pytest.mark.parametrize("order", ORDERS)
def test_one_that_subclasses(odoo, bus, postgres, order, workers):
    server = start(odoo, "demo", "bus_test_subclass", order, workers)
    check(server, bus, postgres, "demo")


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
@pytest.mark.parametrize("order", ORDERS)
def test_one_that_wraps(odoo, bus, postgres, wrapped, order, workers):
    server = start(odoo, wrapped, "bus_test_wrap", order, workers)
    check(server, bus, postgres, wrapped)
    assert server.wait_log(r"overridden run on a dispatch that everyone has: (\w+)")[1] == "True"
    assert server.log_text().count("overridden bus.bus") == 3


# text that the bus knows nothing of, and what upstream's loop can parse and the bus would have written otherwise
OTHERS = {"own loop": ["plain text", "", '{"a": 1}', '[["demo", 1, {}]]'],
          "wrapped cursor": ['[ "nobody" ]', "[]", '["nobody", "nobody"]', '{"nobody": 1}']}


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
@pytest.mark.parametrize("way", OTHERS)
def test_one_that_listens_on_the_same_connection(odoo, bus, postgres, way, workers):
    """What arrives on its channel reaches it as it came, also after a loss, and what arrives on the bus's the bus."""
    server = odoo(workers=workers, load="base,web,bus_test_order", addons=[ADDONS],
                  env={"BUS_TEST_ORDER": ORDERS["before"].format("bus_test_listens"), "BUS_TEST_LISTENS": way})
    client, sender = bus(server)
    for _ in range(2):
        pid, = wait_listening(postgres, server, "bus")
        wait_healthy(server)
        since = server.log_size()
        for payload in OTHERS[way]:
            postgres.query("SELECT pg_notify('bus_test_other', %s)", [payload])
            server.wait_log(re.escape(f"arrived {json.dumps(payload)}."), since=since, timeout=10)
        sender.send_orm("on the bus")
        assert client.next(timeout=10).payload == "on the bus"
        assert not lines(server, " WARNING ", since) and not lines(server, " ERROR ", since)
        postgres.query("SELECT pg_terminate_backend(%s)", [pid])
        wait_until(lambda pid=pid: wait_listening(postgres, server, "bus") != [pid], DEADLINE, "not back")
