"""What the tests share: one real stack a run, and the servers on it.

`stack` is started once a series: all tests on the one, then all on the other. `odoo` starts servers that end with the
test, `serving` one server for a whole module, on the threaded server and on the prefork server in turn.

A test of what a series may lack is marked: `@pytest.mark.needs("cron_listeners")` names a fact of stack/series.py. One
that takes long and has a like that runs on each series is marked `newest`, and runs on the newest alone. What takes
many minutes, or a machine that does nothing else, is marked `long`, and runs with --long.
"""
import itertools
import os
import signal
import sys
from pathlib import Path

import pytest

from stack import Postgres, Stack, StackError
from stack.clients.client import Sender, Session
from stack.download import python
from stack.download.python import QUEUE_JOB
from stack.faults.network import Proxy
from stack.machine import PACKAGES, Unavailable
from stack.series import Series
from tests import documents

pytest_plugins = ["tests.running"]
ADDONS = Path(__file__).parent / "stack" / "addons"
NAMES = itertools.count(1)


def pytest_addoption(parser):
    group = parser.getgroup("odoo")
    group.addoption("--series", metavar="N[,N]", help="the series to test, of those that Debian has: "
                    f"{' and '.join(map(str, PACKAGES))} (default: all that this machine can have)")
    group.addoption("--long", action="store_true", help="also what is marked long")
    group.addoption("--odoo-home", metavar="PATH", help="test this source tree, of any series (also: ODOO_HOME)")
    group.addoption("--odoo-python", metavar="PATH", help="its interpreter (also: ODOO_PYTHON)")


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell script that runs the tests in the background has them ignore it; what they start must not.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        # The same with nohup; a function is not passed on to a program, which has the default then.
        signal.signal(signal.SIGHUP, lambda *_: None)
    config.addinivalue_line("markers", "needs(fact): skip on a series that lacks it, see stack/series.py")
    config.addinivalue_line("markers", "long: takes many minutes, or a machine that does nothing else; --long runs it")
    config.addinivalue_line("markers", "newest: of several series that are tested, on the first alone; --series 14 runs"
                            " it on that")
    for option, variable in (("odoo_home", "ODOO_HOME"), ("odoo_python", "ODOO_PYTHON")):
        if config.getoption(option):
            os.environ[variable] = config.getoption(option)
    asked = config.getoption("series")
    if os.environ.get("ODOO_HOME"):
        if asked:
            raise pytest.UsageError("--series chooses among Debian's Odoos, and ODOO_HOME is one of your own: give one")
        config.series = [None]
    else:
        try:
            config.series = [int(number) for number in asked.split(",")] if asked else list(PACKAGES)
        except ValueError:
            raise pytest.UsageError(f"--series={asked} should be one number, or several with commas") from None


def pytest_generate_tests(metafunc):
    if "series" in metafunc.fixturenames:
        # of the session's scope, so that pytest runs all tests of one value before the next
        metafunc.parametrize("series", metafunc.config.series, scope="session",
                             ids=[f"odoo{number or ''}" for number in metafunc.config.series])


@pytest.fixture(scope="session")
def stack(series, request):
    try:
        with Stack(groups=("odoo", "test"), series=series) as stack:
            stack.database("demo")
            yield stack
    except StackError as exc:
        if isinstance(exc, Unavailable) and not request.config.getoption("series"):
            pytest.skip(f"NOT TESTED on series {series}: {exc}")
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(exc, file=sys.stderr)     # pytest-xdist says of an exit only that there was one
        pytest.exit(str(exc), returncode=3)


@pytest.fixture(scope="session")
def facts(stack):
    """What is true of the series that is tested."""
    return Series(stack.machine.odoo.series[0])


@pytest.fixture(autouse=True)
def needs(request):
    if request.node.get_closest_marker("long") and not request.config.getoption("--long"):
        pytest.skip("takes many minutes, or a machine that does nothing else: ./dev test --long runs it")
    if request.node.get_closest_marker("newest"):
        newest, this = request.config.series[0], request.getfixturevalue("series")
        if this != newest:
            pytest.skip(f"takes long, and is run on series {newest} alone: --series {this} runs it here")
    for mark in request.node.iter_markers("needs"):
        for fact in mark.args:
            facts = request.getfixturevalue("facts")
            if not getattr(facts, fact):
                pytest.skip(f"{facts} has no {fact.replace('_', ' ')}")


@pytest.fixture(scope="session")
def postgres(stack):
    return stack.postgres


@pytest.fixture(scope="session")
def pgbouncer(stack):
    return stack.pgbouncer


@pytest.fixture
def function(postgres):
    """A function that NOTIFYs, where pg_notify itself is nobody's to call; PostgreSQL logs what is sent by it. Its name
    has to be quoted."""
    postgres.query(
        'CREATE FUNCTION public."notifyAndTell"(channel text, payload text) RETURNS void LANGUAGE plpgsql'
        " SECURITY DEFINER AS $$ BEGIN RAISE LOG 'sent on %: %', channel, payload;"
        " PERFORM pg_catalog.pg_notify(channel, payload); END $$")
    postgres.query("REVOKE EXECUTE ON FUNCTION pg_catalog.pg_notify(text, text) FROM PUBLIC")
    yield "notifyAndTell"
    postgres.query("GRANT EXECUTE ON FUNCTION pg_catalog.pg_notify(text, text) TO PUBLIC")
    postgres.query('DROP FUNCTION public."notifyAndTell"(text, text)')


@pytest.fixture(scope="session")
def queue_job(stack, facts):
    """The addons folder of OCA's queue_job, of this series."""
    if facts.number not in QUEUE_JOB:
        pytest.skip(f"NOT TESTED: stack/download/python.py names no queue_job of {facts}")
    try:
        return python.queue_job(stack.machine.cache, facts.number)[0]
    except StackError as exc:
        pytest.skip(f"NOT TESTED: {exc}")


class Servers:
    """Starts Odoos and ends them."""

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
        unknown = {line for odoo in self.started for line in documents.undescribed(odoo.log_text())}
        assert not unknown, "docs/log-lines.rst has not what the addon logged"


@pytest.fixture
def odoo(stack):
    servers = Servers(stack)
    yield servers
    servers.end()


@pytest.fixture
def twenty(odoo, postgres):
    """As `odoo`, of the shape of Odoo 20. Its system database is not called postgres."""
    def start(*args, env=None, options=None, **kw):
        return odoo(*args, load="base,web,bus_test_order", addons=[ADDONS],
                    options={"db_system": system, **(options or {})},
                    env={"BUS_TEST_ORDER": "bus_test_twenty,bus_alt_connection", **(env or {})}, **kw)

    system = f"system{next(NAMES)}"
    postgres.query(f"CREATE DATABASE {system}")
    yield start
    odoo.end()
    postgres.query(f"DROP DATABASE {system} WITH (FORCE)")


@pytest.fixture(scope="module")
def servers(stack):
    """As `odoo`, but they end with the module."""
    servers = Servers(stack)
    yield servers
    servers.end()


@pytest.fixture(scope="module", params=[0, 2], ids=["threaded", "prefork"])
def serving(request, stack):
    """An Odoo with the addon behind the pooler, on each kind of server in turn."""
    servers = Servers(stack)
    try:
        yield servers(workers=request.param)
    finally:
        servers.end()


@pytest.fixture(scope="module")
def proxy(stack):
    """Stands between a listener and PostgreSQL, and can break."""
    proxy = Proxy((stack.postgres.host, stack.postgres.port))
    yield proxy
    proxy.close()


@pytest.fixture(scope="module", params=[0, 2], ids=["threaded", "prefork"])
def server(request, stack, proxy):
    """As `serving`, but its listeners go through `proxy`."""
    servers = Servers(stack)
    try:
        yield servers(workers=request.param, options={"imdispatcher_db_host": proxy.host,
                                                      "imdispatcher_db_port": proxy.port})
    finally:
        servers.end()


@pytest.fixture(scope="module")
def other(stack):
    """Another cluster with the same role and password."""
    other = stack.add(Postgres(stack.machine, stack.folder / f"other-{next(NAMES)}"))
    other.init()
    other.passwords["odoo"] = stack.postgres.odoo_password
    other.query("ALTER ROLE odoo PASSWORD %s", [other.odoo_password])
    yield other
    other.kill()


@pytest.fixture(scope="module")
def standby(stack):
    """A streaming standby of the stack's PostgreSQL."""
    standby = stack.add(stack.postgres.standby(stack.folder / f"standby-{next(NAMES)}"))
    yield standby.start()
    standby.kill()


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
