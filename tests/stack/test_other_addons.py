"""Other addons that override the dispatcher or bus.bus go on working, loaded before this one and after it."""
from pathlib import Path

import pytest

from stack.clients.listeners import wait_listening

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
