"""A port for metrics that another process still holds, as the old one does that drains after a graceful reload."""
import socket
import time

import pytest

from stack.clients.state import pass_seconds, wait_healthy
from stack.process import wait_until
from tests.stack.test_metrics import scrape

DRAINS = 20         # seconds


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.newest)], ids=["threaded", "prefork"])
def test_it_is_bound_when_it_is_free(odoo, bus, workers):
    """One line says that it is taken, and the metrics are served within half a minute after it is not."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = odoo(workers=workers, options={"imdispatcher_metrics_port": port, "max_cron_threads": 0})
        bus(server)
        wait_healthy(server)
        pass_seconds(DRAINS)
    event = time.monotonic()
    wait_until(lambda: scrape(port), 30, "it is not bound again")
    assert time.monotonic() - event < 30
    said = [line for line in server.log_text().splitlines() if "metrics" in line.lower() and "_port" in line
            and (" ERROR " in line or " WARNING " in line) and "unknown option" not in line]
    assert len(said) <= 1, said
