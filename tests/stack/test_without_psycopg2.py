"""An Odoo with another driver than psycopg2: one line says that the addon does nothing there, and Odoo serves."""
from pathlib import Path

import pytest

from stack.clients.client import Session

ADDONS = Path(__file__).parent / "addons"


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.newest)], ids=["threaded", "prefork"])
def test_one_line(odoo, workers):
    server = odoo(workers=workers, pooled=False, load="base,web,bus_test_order", addons=[ADDONS],
                  env={"BUS_TEST_ORDER": "bus_test_no_psycopg2,bus_alt_connection"})
    Session(server, "demo")     # it serves
    said = [line.split() for line in server.log_text().splitlines() if " ERROR " in line or " CRITICAL " in line]
    assert said, "nothing says that the addon does nothing"
    # each process loads it
    assert len({words[2] for words in said}) == len(said), said
    assert all("psycopg2" in " ".join(words) for words in said), said
    assert "Traceback" not in server.log_text()
