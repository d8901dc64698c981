"""A database whose table of notifications cannot be read is said, seldom, and looked at again; the others are as ever.

Takes 6 min.
"""
import itertools
import re

import pytest

from stack.clients.listeners import check_once_a_minute, wait_listening
from stack.clients.state import lines, pass_seconds, wait_healthy
from stack.clients.unnotified import FOUND, clients, gets
from stack.process import DEADLINE, free_port, wait_until
from tests.stack.test_metrics import scrape

NAMES = itertools.count(1)
WATCHED = 150       # seconds
pytestmark = [pytest.mark.timeout(600), pytest.mark.long]


@pytest.fixture
def second(stack):
    """Another database with an Odoo in it, which is gone after the test."""
    name = stack.database(f"unreadable{next(NAMES)}")
    yield name
    stack.drop(name)


@pytest.mark.parametrize("broken, mended", [
    ("REVOKE SELECT ON bus_bus FROM odoo", "GRANT SELECT ON bus_bus TO odoo"),
    pytest.param("ALTER TABLE bus_bus RENAME channel TO passage", "ALTER TABLE bus_bus RENAME passage TO channel",
                 marks=pytest.mark.newest),
    pytest.param("ALTER TABLE bus_bus RENAME TO bus_car", "ALTER TABLE bus_car RENAME TO bus_bus",
                 marks=pytest.mark.newest),
    pytest.param("ALTER DATABASE {} CONNECTION LIMIT 0", "ALTER DATABASE {} CONNECTION LIMIT -1",
                 marks=pytest.mark.newest)], ids=["permission", "column", "table", "connect"])
def test_looks_that_fail(stack, odoo, postgres, second, broken, mended):
    port = free_port()
    server = odoo(f"demo,{second}", options={"max_cron_threads": 0, "imdispatcher_metrics_port": port})
    with clients(stack, server, "demo", second) as found:
        wait_listening(postgres, server, "bus")
        wait_healthy(server)
        client, sender = found["demo"]
        silent, own = found[second]
        own.close()
        failures = failed(port)
        since = server.log_size()
        postgres.query(broken.format(second), dbname=second)
        if "LIMIT" in broken:       # what is connected already would be used again
            stack.pgbouncer.command("RECONNECT")
        server.wait_log(rf"(WARNING|ERROR) .*bus_alt_connection.*\b{second}\b", FOUND + 30, since)
        pass_seconds(WATCHED)
        sender.insert("of another database")
        gets(client, "of another database")
        said = [line for line in lines(server, second, since) if re.search(" (WARNING|ERROR) ", line)]
        check_once_a_minute(" ", "\n".join(said))
        assert failed(port) > failures, f"no metric counts it: {scrape(port)}"
        since = server.log_size()
        postgres.query(mended.format(second), dbname=second)
        own.insert("found in the end")
        gets(silent, "found in the end")
        pass_seconds(30)
        assert not [line for line in lines(server, second, since) if re.search(" (WARNING|ERROR) ", line)]


def failed(port):
    """What the metrics count as failed."""
    wait_until(lambda: scrape(port), DEADLINE, "no metrics are served")
    return sum(value for (name, *_), value in scrape(port).items() if "fail" in name)


def test_a_database_without_the_table(stack, odoo, postgres, second):
    """The bus is not installed there: nothing to look at, nothing to say."""
    server = odoo(f"demo,{second}", options={"max_cron_threads": 0})
    with clients(stack, server, "demo"):
        wait_listening(postgres, server, "bus")
        postgres.query("ALTER TABLE bus_bus RENAME TO bus_car", dbname=second)
        pass_seconds(45)
        assert not [line for line in lines(server, second) if re.search(" (WARNING|ERROR) ", line)]
