"""The settings of OCA's server-tools for cron's own connection are a fallback for the cron listeners."""
import pytest

from stack.clients.listeners import direct, wait_listening
from stack.faults.network import Proxy
from stack.process import free_port, wait_until

pytestmark = pytest.mark.needs("cron_listeners")


@pytest.fixture
def counted(stack):
    """The way to PostgreSQL, which counts who comes."""
    proxy = Proxy((stack.postgres.host, stack.postgres.port))
    yield proxy
    proxy.close()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.newest)], ids=["threaded", "prefork"])
@pytest.mark.parametrize("where", ["odoo.conf", "environment"])
def test_they_are_read(odoo, postgres, counted, where, workers):
    names = {"cron_db_host": counted.host, "cron_db_port": counted.port}
    if where == "odoo.conf":
        server = odoo(workers=workers, direct=False, options=names)
    else:
        server = odoo(workers=workers, direct=False,
                      env={f"ODOO_{name.upper()}": str(value) for name, value in names.items()})
    wait_listening(postgres, server, "cron")
    assert counted.accepted


def test_the_addons_own_go_before_them(odoo, postgres, counted):
    server = odoo(options={"cron_db_host": counted.host, "cron_db_port": counted.port})
    wait_listening(postgres, server, "cron")
    assert not counted.accepted


def test_they_are_crons_alone(stack, odoo, bus, postgres):
    """The bus does not go where they lead: the bus is told its own address."""
    server = odoo(direct=True, options={"cron_db_host": "127.0.0.1", "cron_db_port": free_port()})
    bus(server)
    wait_listening(postgres, server, "bus")
    wait_until(lambda: direct(postgres, server, "cron"), 30, "cron does not listen at the address of the addon's own")
