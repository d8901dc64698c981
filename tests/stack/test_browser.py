"""The bus as its users meet it: two of them talk in Discuss, in Chromium, through faults of the healing tests.

A message appears for the other before, during (as soon as the fault lets it be posted) and after, and no page is
loaded again. The times from pressing Enter to appearing are printed, and what was shown is in the test's tmp_path.
"""
import pytest

from stack.clients.browser import browser
from stack.clients.discuss import DATABASE, MODULES, talk
from stack.clients.flow import when_serves
from stack.clients.listeners import wait_listening
from stack.machine import Unavailable

pytestmark = pytest.mark.timeout(900)

# Upper bounds, in seconds, with a wide margin.
IN_TIME = 30.0      # what is not pushed comes with the next subscription, if ever
SILENT = 30.0       # in which a frozen path is noticed, see test_healing
DEGRADED = 30.0     # that a message may take while there is no listener


@pytest.fixture(scope="module")
def opened(stack, facts):
    if not facts.discuss_address:
        pytest.skip(f"{facts} has no Discuss with an address of its own")
    pytest.importorskip("playwright", reason="no Playwright: pip install -r stack/requirements-browser.txt")
    try:
        with browser(stack.machine.cache) as found:
            yield found
    except Unavailable as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def server(stack, servers, proxy, opened):
    stack.database(DATABASE, MODULES)
    return servers(DATABASE, workers=2, options={"imdispatcher_db_host": proxy.host,
                                                 "imdispatcher_db_port": proxy.port})


@pytest.fixture
def chat(stack, server, proxy, opened, tmp_path, capsys):
    with talk(stack, server, opened) as chat:
        wait_listening(stack.postgres, server, "bus")
        try:
            yield chat
        finally:
            proxy.heal()
            chat.save(tmp_path)
            with capsys.disabled():
                print(f"\n  seen by the other after: {chat.times()}", flush=True)


def test_backend_terminated(chat, server, postgres):
    chat.exchange("before", IN_TIME)
    pid, = wait_listening(postgres, server, "bus")
    postgres.query("SELECT pg_terminate_backend(%s)", [pid])
    chat.exchange("during", IN_TIME)
    assert wait_listening(postgres, server, "bus") != [pid]
    chat.exchange("after", IN_TIME)


def test_postgresql_restarts(chat, server, stack):
    chat.exchange("before", IN_TIME)
    # Odoo logs out whoever asks it for something while it has no database (http.py, RegistryError), and a browser asks
    # by itself: for what was read, that somebody types
    with chat.gateway.holding():
        stack.postgres.restart("fast")
        when_serves(stack.pgbouncer, ["postgres", DATABASE])
    # the browsers may have to connect again, which they do after one or two seconds
    chat.exchange("during", DEGRADED)
    wait_listening(stack.postgres, server, "bus")
    chat.exchange("after", IN_TIME)


def test_frozen_path(chat, server, proxy):
    chat.exchange("before", IN_TIME)
    since = server.log_size()
    proxy.freeze()
    chat.exchange("frozen", SILENT + DEGRADED)      # nobody knows it yet
    server.wait_log(r"bus listener lost its connection .* silent", since=since)
    chat.exchange("degraded", DEGRADED)
    proxy.heal()
    server.wait_log("bus listener is listening again", since=since)
    chat.exchange("after", IN_TIME)
