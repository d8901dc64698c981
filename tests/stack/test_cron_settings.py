"""The settings of OCA's server-tools for cron's own connection: whoever has them is told what to set here."""
import pytest

from stack.clients.listeners import wait_listening
from stack.clients.state import lines
from stack.faults.network import Proxy

pytestmark = pytest.mark.needs("cron_listeners")


@pytest.fixture
def counted(stack):
    """The way to PostgreSQL, which counts who comes."""
    proxy = Proxy((stack.postgres.host, stack.postgres.port))
    yield proxy
    proxy.close()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.newest)], ids=["threaded", "prefork"])
@pytest.mark.parametrize("where", ["odoo.conf", "environment"])
def test_they_are_named(odoo, counted, where, workers):
    """One line of each process for each of them, which names the setting that counts."""
    names = {"cron_db_host": counted.host, "cron_db_port": counted.port}
    if where == "odoo.conf":
        server = odoo(workers=workers, direct=False, options=names)
    else:
        server = odoo(workers=workers, direct=False,
                      env={f"ODOO_{name.upper()}": str(value) for name, value in names.items()})
    for name in names:
        spelled = name if where == "odoo.conf" else f"ODOO_{name.upper()}"
        server.wait_log(rf"(WARNING|ERROR) .*bus_alt_connection.*\b{spelled}\b.*imdispatcher_{name[5:]}")
        said = [line.split()[2] for line in lines(server, spelled)]
        assert len(said) == len(set(said)), said


def test_the_addons_own_go_before_them(odoo, postgres, counted):
    server = odoo(options={"cron_db_host": counted.host, "cron_db_port": counted.port})
    wait_listening(postgres, server, "cron")
    assert not counted.accepted
