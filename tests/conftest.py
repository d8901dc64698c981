"""What the tests share: one real stack a run, and the servers on it.

`stack` is started once. `odoo` starts servers that end with the test, `serving` one server for a whole module, on the
threaded server and on the prefork server in turn.
"""
import itertools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from stack import Stack, StackError  # noqa: E402
from stack.client import Sender, Session  # noqa: E402

NAMES = itertools.count(1)


@pytest.fixture(scope="session")
def stack():
    try:
        with Stack(groups=("odoo", "test")) as stack:
            stack.database("demo")
            yield stack
    except StackError as exc:
        pytest.exit(str(exc), returncode=3)


@pytest.fixture(scope="session")
def postgres(stack):
    return stack.postgres


@pytest.fixture(scope="session")
def pgbouncer(stack):
    return stack.pgbouncer


class Servers:
    """Starts Odoos and ends them; a failed test's log is shown."""

    def __init__(self, stack):
        self.stack = stack
        self.started = []

    def __call__(self, database="demo", workers=0, pooled=True, direct=True, **kw):
        odoo = self.stack.odoo(pooled=pooled, direct=direct, name=f"odoo-{next(NAMES)}")
        self.started.append(odoo)
        return odoo.start(database, workers=workers, **kw)

    def end(self):
        for odoo in self.started:
            odoo.kill()


@pytest.fixture
def odoo(stack):
    servers = Servers(stack)
    yield servers
    servers.end()


@pytest.fixture(scope="module", params=[0, 2], ids=["threaded", "prefork"])
def serving(request, stack):
    """An Odoo with the addon behind the pooler, on each kind of server."""
    servers = Servers(stack)
    try:
        yield servers(workers=request.param)
    finally:
        servers.end()


@pytest.fixture
def bus(request):
    """Opens a client and a sender on a server: `client, sender = bus(odoo)`."""
    opened = []

    def open_bus(odoo, database="demo", channel=None):
        channel = channel or f"channel-{next(NAMES)}"
        session = Session(odoo, database)
        sender = Sender(session, request.getfixturevalue("pgbouncer"), channel)
        # A browser has seen a notification before; one that subscribes with 0 gets the last 50 s only.
        last = sender.send_sql("the last one seen before")
        client = session.subscribe([channel], last=last)
        opened.extend([client, sender])
        return client.wait_subscribed(), sender

    yield open_bus
    for thing in opened:
        thing.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Show the end of the log of each server that a failed test used."""
    report = (yield).get_result()
    if report.failed:
        for odoo in servers_of(item):
            if odoo.log.exists():
                report.sections.append((f"log of {odoo.folder.name}", "\n".join(
                    odoo.log_text().splitlines()[-60:])))


def servers_of(item):
    funcargs = getattr(item, "funcargs", {})
    if "serving" in funcargs:
        yield funcargs["serving"]
    yield from getattr(funcargs.get("odoo"), "started", ())
