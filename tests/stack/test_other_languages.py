"""PostgreSQL speaks German, in UTF-8 or in LATIN1, which Python cannot decode as UTF-8: nothing depends on its words.

Its messages at log-in have no code, only this text. Takes 8 min.
"""
import contextlib
import itertools
import re

import pytest

from stack import Postgres
from stack.clients.flow import Flow
from stack.clients.listeners import check_once_a_minute, wait_listening
from stack.clients.state import DEGRADED, instant, lines, pass_seconds, wait_failing, wait_healthy
from stack.clients.unnotified import clients, gets
from stack.faults.network import Proxy
from stack.machine import Unavailable
from stack.process import free_port, wait_until
from stack.servers.locales import GERMAN, GERMAN_LATIN1, speaking

NAMES = itertools.count(1)
MINUTE = 60         # seconds, in which attempts are quick
WATCHED = 30        # seconds
SLOW = 5            # seconds between attempts after that, a fifth more or less
pytestmark = [pytest.mark.timeout(400), pytest.mark.long]


@contextlib.contextmanager
def in_german(postgres, locale):
    """A skip where this machine cannot have that."""
    with contextlib.ExitStack() as entered:
        try:
            entered.enter_context(speaking(postgres, *locale))
        except Unavailable as exc:
            pytest.skip(f"NOT TESTED: {exc}")
        yield locale


@pytest.fixture(scope="module", params=[GERMAN, GERMAN_LATIN1], ids=["utf8", "latin1"])
def german(stack, request):
    with in_german(stack.postgres, request.param) as locale:
        yield locale


@pytest.fixture
def role(postgres):
    """`role(change)` makes the role `direct` and then changes it; it is gone after the test."""
    def make(change):
        postgres.query("CREATE ROLE direct LOGIN PASSWORD 'right'")
        postgres.query(f"ALTER ROLE direct {change}")
    yield make
    postgres.query("DROP ROLE IF EXISTS direct")


@pytest.fixture
def counted(stack):
    """The way to PostgreSQL, which counts who comes."""
    proxy = Proxy((stack.postgres.host, stack.postgres.port))
    yield proxy
    proxy.close()


# what is wrong with the role, how it is mended, and what PostgreSQL says of it: the words that all charsets can write
ROLES = {
    "password": ("PASSWORD 'another'", "PASSWORD 'right'", "Passwort-Authentifizierung"),
    "login": ("NOLOGIN", "LOGIN", "Berechtigung zum Einloggen"),
    "limit": ("CONNECTION LIMIT 0", "CONNECTION LIMIT -1", "zu viele Verbindungen"),
}


@pytest.mark.parametrize("wrong", ["password", pytest.param("login", marks=pytest.mark.newest),
                                   pytest.param("limit", marks=pytest.mark.newest)])
def test_who_may_not_log_in(stack, odoo, postgres, german, role, counted, wrong):
    """Is tried as seldom as in English, says what PostgreSQL says, and listens soon after it was mended."""
    broken, mended, words = ROLES[wrong]
    role(broken)
    server = odoo(options={
        "imdispatcher_db_host": counted.host, "imdispatcher_db_port": counted.port, "max_cron_threads": 0,
        "imdispatcher_db_user": "direct", "imdispatcher_db_password": "right"})
    with Flow(server, stack.pgbouncer, postgres, every=1.0) as flow:
        wait_until(lambda: counted.accepted, 20, "nobody tries")
        wait_failing(server)
        server.wait_log(rf"(WARNING|ERROR) .*bus listener.*({words})", MINUTE + 10)
        pass_seconds(MINUTE)
        before = counted.accepted
        pass_seconds(WATCHED)
        tried = counted.accepted - before
        assert 1 <= tried <= WATCHED / SLOW * 1.25 + 1, f"{tried} attempts in {WATCHED} s"
        assert flow.slowest() < DEGRADED
        said = [line for line in lines(server, "bus listener") if re.search(words, line)]
        check_once_a_minute(" (WARNING|ERROR) ", "\n".join(said))
        assert "Traceback" not in server.log_text() and "UnicodeDecodeError" not in server.log_text()
        postgres.query(f"ALTER ROLE direct {mended}")
        wait_listening(postgres, server, "bus", timeout=10)
        instant(flow)
        flow.check()
    server.kill()


@pytest.mark.newest
@pytest.mark.parametrize("settings, words", [
    ({"imdispatcher_db_name": "nowhere"}, "nowhere. existiert nicht"),
    ({"imdispatcher_db_user": "nobody", "imdispatcher_db_password": "none"}, "Passwort-Authentifizierung"),
], ids=["database", "role"])
def test_misconfigured(stack, odoo, postgres, german, settings, words):
    """One line has the words of PostgreSQL, and everything is polled."""
    server = odoo(options={"max_cron_threads": 0, **settings})
    with Flow(server, stack.pgbouncer, postgres, every=1.0) as flow:
        server.wait_log(rf"(WARNING|ERROR) .*bus listener.*{words}", MINUTE + 10)
        flow.wait_received(3)
        pass_seconds(WATCHED)
        assert flow.slowest() < DEGRADED
        check_once_a_minute(" (WARNING|ERROR) ", "\n".join(lines(server, "bus listener")))
        assert "Traceback" not in server.log_text() and "UnicodeDecodeError" not in server.log_text()
        flow.check()


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "straight"])
def test_a_database_that_was_dropped(stack, odoo, postgres, german, proxy, facts, pooled):
    """Its clients are there, nobody asks for it any more, and nothing is said of it each minute."""
    second = stack.database(f"german{next(NAMES)}")
    # PgBouncer itself goes on asking for it so long after somebody has, two minutes by default
    waits = stack.pgbouncer.changed(settings={"query_wait_timeout": "20"})
    with waits, contextlib.ExitStack() as at_the_end:
        at_the_end.callback(stack.drop, second)
        at_the_end.callback(proxy.heal)
        server = odoo(f"demo,{second}", pooled=pooled, options={
            "imdispatcher_db_host": proxy.host, "imdispatcher_db_port": proxy.port, "max_cron_threads": 0})
        with clients(stack, server, "demo", second) as found:
            wait_listening(postgres, server, "bus")
            wait_healthy(server)
            client, sender = found["demo"]
            found[second][1].close()
            if facts.client == "LongPolling":
                found[second][0].close()        # it would poll again and again, and Odoo itself ask for the database
            proxy.refuse()
            wait_failing(server)
            stack.drop(second)
            sender.insert("while it is polled")
            gets(client, "while it is polled", DEGRADED + 2)
            proxy.heal()
            wait_healthy(server, 30)
            sender.insert("and when it listens")
            gets(client, "and when it listens")
            pass_seconds(MINUTE)
            since, asked = server.log_size(), postgres.log_size()
            pass_seconds(WATCHED)
            refused = [line for line in postgres.log_text(asked).splitlines() if "FATAL" in line and second in line]
            assert len(refused) <= 1, f"it is asked for {len(refused)} times in {WATCHED} s"
            assert not [line for line in lines(server, second, since) if re.search(" (WARNING|ERROR) ", line)]


def test_a_lost_connection(stack, odoo, postgres, german):
    """It is back at once, as in English; so it is after a restart, while which it says that it is starting up."""
    server = odoo(options={"max_cron_threads": 0})
    with Flow(server, stack.pgbouncer, postgres) as flow:
        pid, = wait_listening(postgres, server, "bus")
        wait_healthy(server)
        postgres.query("SELECT pg_terminate_backend(%s)", [pid])
        wait_until(lambda: pid not in wait_listening(postgres, server, "bus", timeout=5), 5, "it is not back")
        wait_healthy(server)
        postgres.restart()
        wait_listening(postgres, server, "bus", timeout=10)
        wait_healthy(server)
        assert "UnicodeDecodeError" not in server.log_text()
        instant(flow)
        flow.check()


@pytest.mark.parametrize("locale", [GERMAN, GERMAN_LATIN1], ids=["utf8", "latin1"])
def test_the_next_host_is_tried(stack, odoo, postgres, locale):
    """The first of two refuses the log-in, with a text that is not ASCII."""
    other = stack.add(Postgres(stack.machine, stack.folder / f"german-{next(NAMES)}", free_port()))
    try:
        other.init()
        other.query("ALTER ROLE odoo PASSWORD 'another'")
        with in_german(other, locale):
            server = odoo(options={"imdispatcher_db_host": f"{other.host},{postgres.host}", "max_cron_threads": 0,
                                   "imdispatcher_db_port": f"{other.port},{postgres.port}"})
            with Flow(server, stack.pgbouncer, postgres) as flow:
                wait_listening(postgres, server, "bus", timeout=20)
                instant(flow)
                flow.check()
            assert "Traceback" not in server.log_text() and "UnicodeDecodeError" not in server.log_text()
            server.kill()
    finally:
        other.kill()
