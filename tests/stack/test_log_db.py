"""Odoo writes its log to a database (log_db), and that is away: a listener's own lines do not keep it from trying."""
import time

import pytest

from stack.clients.listeners import wait_listening
from stack.clients.state import pass_seconds, wait_healthy
from stack.faults.network import Proxy
from stack.process import wait_until


@pytest.fixture
def path(stack):
    """The way of Odoo's own queries to PostgreSQL."""
    proxy = Proxy((stack.postgres.host, stack.postgres.port))
    yield proxy
    proxy.heal()
    proxy.close()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.newest)], ids=["threaded", "prefork"])
def test_the_database_of_the_log_does_not_answer(stack, odoo, bus, path, proxy, workers):
    """Packets to it are dropped, and the direct path is lost for half a minute and then good again."""
    server = odoo(workers=workers, options={
        "db_host": path.host, "db_port": path.port, "log_db": "demo", "log_db_level": "warning", "max_cron_threads": 0,
        "imdispatcher_db_host": proxy.host, "imdispatcher_db_port": proxy.port})
    client, sender = bus(server)
    try:
        wait_listening(stack.postgres, server, "bus")
        wait_healthy(server)
        since = server.log_size()
        path.freeze()
        proxy.refuse()
        server.wait_log(" (WARNING|ERROR) .*bus_alt_connection", since=since)
        pass_seconds(30)
        tried = proxy.accepted
        wait_until(lambda: proxy.accepted > tried, 12, "the listener does not try any more")
        proxy.heal()
        event = time.monotonic()
        wait_listening(stack.postgres, server, "bus", timeout=12)
        path.heal()
        wait_healthy(server, timeout=30)
        sender.send_sql("at last")
        assert client.next(timeout=60).payload == "at last"
        assert time.monotonic() - event < 60
    finally:
        path.heal()
        proxy.heal()
