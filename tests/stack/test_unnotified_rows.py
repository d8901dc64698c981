"""A row of bus_bus whose NOTIFY never came reaches who waits for it, while the bus listens and all is well.

As when the pooler dies between a sender's commit and its NOTIFY: the row is committed, and nobody was notified. A long
poll, before series 16, ends after 50 s and looks by itself; from there on it is the addon that has to. Takes 7 min.
"""
import contextlib
from pathlib import Path

import pytest

from bench import audience
from stack.clients.listeners import wait_listening
from stack.clients.state import DEGRADED, pass_seconds, wait_failing, wait_healthy

newest = pytest.mark.newest
FOUND = 60      # seconds
LATE = 35       # seconds between a commit and that of a lower id
READ = "A long poll has read the table and does not wait yet"       # what the test's addon logs
UNREADABLE = [None, "not JSON", '{"a": 1}', "[[]]", "[" * 3000, "null", "7"]


@pytest.fixture
def serve(odoo, proxy, stack):
    """`serve(workers)` starts an Odoo whose listeners go through `proxy`."""
    def serve(workers):
        return odoo(workers=workers, options={"imdispatcher_db_host": proxy.host, "imdispatcher_db_port": proxy.port})
    yield serve
    proxy.heal()


def listens(stack, server):
    wait_listening(stack.postgres, server, "bus")
    wait_healthy(server)


@contextlib.contextmanager
def anew(client):
    """Another client like this one, which has looked at the table just now."""
    client.close()
    with client.session.subscribe(client.channels, last=client.last) as another:
        yield another.wait_subscribed()


def gets(client, payload, timeout=FOUND):
    notification = client.next(timeout=timeout)
    assert notification, f"{payload!r} did not come within {timeout} s"
    assert notification.payload == payload


@pytest.mark.parametrize("workers", [pytest.param(0, marks=newest), 2], ids=["threaded", "prefork"])
def test_it_is_found(serve, bus, stack, workers):
    """On a channel on which nothing else ever comes, whatever its name, and beside rows whose channel is none."""
    server = serve(workers)
    client, sender = bus(server, channel=f'è "quoted" [1, 2] \\ \U0001f600 {workers}')
    listens(stack, server)
    with anew(client) as client:
        stack.postgres.query(
            "INSERT INTO bus_bus (channel, message, create_date) SELECT channel, '1', now() AT TIME ZONE 'UTC'"
            " FROM unnest(%s) channel", [UNREADABLE], dbname="demo")
        sender.insert("nobody was notified")
        gets(client, "nobody was notified")


@newest
def test_each_client_gets_it_once(serve, bus, stack):
    server = serve(workers=0)
    client, sender = bus(server)
    listens(stack, server)
    with contextlib.ExitStack() as opened:
        crowd = [opened.enter_context(client.session.subscribe(client.channels, last=client.last)) for _ in range(20)]
        for each in crowd:
            each.wait_subscribed()
        sender.insert("nobody was notified")
        for each in crowd:
            gets(each, "nobody was notified")
        pass_seconds(1)         # before 16 each polls anew first
        sender.send_sql("the next one")
        for each in crowd:
            gets(each, "the next one", timeout=DEGRADED)


@pytest.mark.parametrize("polls, workers", [
    ("never", 2), pytest.param("when both are there", 0, marks=newest),
    pytest.param("before they are there", 2, marks=newest)])
def test_a_lower_id_commits_later(serve, bus, stack, proxy, polls, workers):
    """A transaction takes an id, and commits long after a higher one was seen.

    Its own NOTIFY never comes; while the bus is polled none is heard anyway.
    """
    server = serve(workers)
    client, sender = bus(server)
    other_client, other_sender = bus(server)
    listens(stack, server)

    def poll(now):
        if polls == now:
            proxy.refuse()
            wait_failing(server)
            pass_seconds(DEGRADED)

    poll("before they are there")
    late = stack.postgres.connect("demo", user="odoo")
    late.autocommit = False
    sender.close()
    sender.connection = late
    lower = sender.insert("late")
    assert lower < other_sender.send_sql("in time")
    gets(other_client, "in time", timeout=DEGRADED + 5)
    poll("when both are there")
    pass_seconds(LATE)
    with anew(client) as client:
        late.commit()
        # a long poll, before 16, asks for it itself: at least every 50 s
        polled = DEGRADED + 2 if server.facts.client == "WebSocket" else FOUND
        gets(client, "late", timeout=FOUND if polls == "never" else polled)


def test_a_notify_that_comes_before_the_wait(odoo, bus, stack, facts):
    """A long poll that has received nothing yet has read the table, and is not registered: nobody is woken.

    Such a client is shown the last 50 s only, so it has to look again before these are over.
    """
    if facts.client != "LongPolling":
        pytest.skip(f"{facts} has no long polls")
    server = odoo(workers=2, load="base,web,bus_alt_connection,bus_test_late_event",
                  addons=[Path(__file__).parent / "addons"])
    client, sender = bus(server)
    listens(stack, server)
    sender.send_orm("the first takes longer, as it prepares to send")
    server.wait_log(READ)
    client.close()
    since = server.log_size()
    sender.channel = "fresh"
    with client.session.subscribe([sender.channel]) as fresh:
        server.wait_log(READ, since=since)
        sender.send_orm("nobody was woken")
        gets(fresh, "nobody was woken")


def test_who_was_notified_is_not_woken_again(serve, stack, facts):
    """Each client that is woken queries the table once; looking for what was missed adds less than 2 %."""
    if facts.client != "WebSocket":
        pytest.skip(f"many clients that are cheap are websockets, which {facts} has not")
    results = {result.metric: result.value for result in audience.heard(stack, "addon", serve(2), 200, messages=4)}
    assert not results["lost"]
    assert 0.9 < results["looks at the table for each message and client"] / facts.queries_a_look < 1.02, results
