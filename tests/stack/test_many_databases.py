"""Many databases with clients: how many connections are tried at once, and how fast and which clients are woken.

Takes 8 min.
"""
import itertools
import json
import math
import os
import signal
import time

import pytest

from bench.clients import Sender, Swarm
from stack.clients.listeners import client_ports, wait_listening
from stack.clients.state import pass_seconds, wait_failing, wait_healthy
from stack.clients.unnotified import clients, gets
from stack.process import wait_until

NAMES = itertools.count(1)
MANY = 24           # databases
WATCHED = 120       # seconds
AT_ONCE = 8         # connection attempts
PACE = 500          # clients that are woken in a second, at most
CROWD = 160         # clients of a database
CROWDS, BIG_CROWD = 4, 200     # their sockets have to fit into select(), which the proxy waits with
PATIENCE = 90       # seconds
pytestmark = [pytest.mark.timeout(900), pytest.mark.long]


@pytest.fixture
def databases(stack):
    """`databases(count)` makes so many, each with an Odoo in it, which are gone after the test: their names."""
    made = []

    def databases(count):
        made.extend(stack.database(f"many{next(NAMES)}") for _ in range(count))
        return made
    yield databases
    for name in made:
        stack.drop(name)


@pytest.mark.parametrize("listens", [pytest.param(True, marks=pytest.mark.newest), False], ids=["listening", "polling"])
def test_a_pooler_that_hangs(stack, odoo, databases, proxy, listens):
    """It accepts and answers nothing. What is asked of it waits its turn, and all goes on when it does."""
    names = databases(MANY)
    server = odoo(",".join(names), options={
        "imdispatcher_db_host": proxy.host, "imdispatcher_db_port": proxy.port, "max_cron_threads": 0,
        "limit_memory_soft": 8 << 30, "limit_memory_hard": 9 << 30})    # keeps all of them loaded
    with clients(stack, server, *names) as found:
        wait_listening(stack.postgres, server, "bus")
        wait_healthy(server)
        if not listens:
            proxy.refuse()
            wait_failing(server)
        os.kill(stack.pgbouncer.pid, signal.SIGSTOP)
        try:
            before = client_ports([server.pid], stack.pgbouncer.port)
            most, over = set(), time.monotonic() + WATCHED

            def enough():
                nonlocal most
                most = max(most, client_ports([server.pid], stack.pgbouncer.port) - before, key=len)
                return len(most) > AT_ONCE or time.monotonic() > over
            wait_until(enough, WATCHED + 30, "time stands still")
            took = WATCHED - over + time.monotonic()
        finally:
            os.kill(stack.pgbouncer.pid, signal.SIGCONT)
            proxy.heal()
        assert most, "nobody asks the pooler anything"
        assert len(most) <= AT_ONCE, f"{len(most)} connections are tried at once, after {took:.0f} s"
        for _, sender in found.values():
            sender.insert("when it is back")
        for client, _ in found.values():
            gets(client, "when it is back")


class Crowds:
    """Clients in several databases, each on a channel of its own, and how often the table of one is looked at."""

    def __init__(self, stack, server, names, size):
        self.stack, self.server, self.names, self.size = stack, server, names, size
        self.swarms = {}

    def __enter__(self):
        for name in self.names:
            without_statistics_in(self.stack, name)
            with Sender(self.stack.postgres, name) as sender:
                first, = sender.insert([f"{name}-{self.size}"])
            swarm = Swarm(self.server, name, self.size, lambda number, name=name: [f"{name}-{number}"], last=first)
            self.swarms[name] = swarm.__enter__()
        for swarm in self.swarms.values():
            swarm.settle(30)
        return self

    def __exit__(self, *exc):
        for swarm in self.swarms.values():
            swarm.__exit__(*exc)

    def commit(self, name):
        """A row for each client of a database, of which nobody is notified."""
        with Sender(self.stack.postgres, name) as sender:
            return sender.insert([f"{name}-{number}" for number in range(self.size)])

    def arrivals(self):
        """When each client got its latest."""
        return sorted(client.received[-1][1] for swarm in self.swarms.values() for client in swarm.clients
                      if client.received)


def without_statistics_in(stack, name):
    """See bench.audience.without_statistics, which is for one database."""
    stack.postgres.query("ALTER TABLE bus_bus SET (autovacuum_enabled = off)", dbname=name)
    stack.postgres.query("DELETE FROM pg_statistic WHERE starelid = 'bus_bus'::regclass", dbname=name)


def looks(stack, name):
    """How often the table of notifications of a database was looked at up to now."""
    stack.postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                         " WHERE datname = %s AND state = 'idle'", [name])
    stack.pgbouncer.command("RECONNECT")
    pass_seconds(1)     # in which those that ended have told what they did
    return stack.postgres.query("SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_user_tables"
                                " WHERE relname = 'bus_bus'", dbname=name)[0][0]


@pytest.fixture
def crowds(stack, odoo, databases, proxy, facts):
    """`with crowds(count) as crowds:` so many databases with clients, on a server that listens through `proxy`."""
    if facts.client != "WebSocket":
        pytest.skip(f"many clients that are cheap are websockets, which {facts} has not")

    def crowds(count, size=CROWD):
        names = databases(count)
        server = odoo(",".join(names), workers=1, options={
            "imdispatcher_db_host": proxy.host, "imdispatcher_db_port": proxy.port, "max_cron_threads": 0})
        return Crowds(stack, server, names, size)
    yield crowds
    proxy.heal()


def listens(stack, server):
    wait_listening(stack.postgres, server, "bus")
    wait_healthy(server)


@pytest.mark.alone          # a rate, which a busy machine can only make lower
def test_one_pace_for_all_databases(stack, crowds, proxy):
    """Everyone in several databases lacks a row when the bus listens again."""
    with crowds(CROWDS, BIG_CROWD) as all_of_them:
        listens(stack, all_of_them.server)
        proxy.refuse()
        wait_failing(all_of_them.server)
        ids = [all_of_them.commit(name) for name in all_of_them.names]
        proxy.heal()

        def have_it():
            return all(client.last >= min(own) for own, swarm in zip(ids, all_of_them.swarms.values(), strict=True)
                       for client in swarm.clients)
        wait_until(have_it, PATIENCE, "not everyone has it")
        arrivals = all_of_them.arrivals()
        total = CROWDS * BIG_CROWD
        assert len(arrivals) == total
        # the middle half, as the first ones may come together
        span = arrivals[3 * total // 4] - arrivals[total // 4]
        rate = total / 2 / span
        assert rate < 1.5 * PACE, f"{rate:.0f} clients a second are woken, and {PACE} are allowed"


@pytest.mark.parametrize("emptied", ["TRUNCATE bus_bus", "DELETE FROM bus_bus",
                                     "TRUNCATE bus_bus RESTART IDENTITY"])
def test_an_emptied_table_is_its_own_databases(stack, crowds, emptied):
    """The clients of another database are not woken by it."""
    with crowds(2) as both:
        listens(stack, both.server)
        one, other = both.names
        pass_seconds(30)        # its first looks have been
        before = looks(stack, other)
        stack.postgres.query(emptied, dbname=one)
        pass_seconds(70)
        looked = looks(stack, other) - before
        assert looked < CROWD / 2, f"{looked} looks at the table of a database where nothing happened"


def test_many_rows_wake_nobody_while_notifies_arrive(stack, crowds):
    """Up to 1,000 rows a second on a channel that none of the clients waits for."""
    with crowds(1) as crowd:
        listens(stack, crowd.server)
        name, = crowd.names
        pass_seconds(30)
        before = looks(stack, name)
        with stack.postgres.connect(name) as rows, stack.postgres.connect() as notifies:
            rows.autocommit = notifies.autocommit = True
            channel = json.dumps([name, "nobody's"], separators=(",", ":"))
            over = time.monotonic() + 60
            batches = 0
            while time.monotonic() < over:
                rows.cursor().execute(
                    "INSERT INTO bus_bus (channel, message, create_date) SELECT %s, '{\"type\": \"bench\", \"payload\":"
                    " 1}', now() AT TIME ZONE 'UTC' FROM generate_series(1, 100)", [channel])
                notifies.cursor().execute("SELECT pg_notify('imbus', %s)", [f"[{channel}]"])
                batches += 1
                turn = time.monotonic() + 0.1
                wait_until(lambda turn=turn: time.monotonic() > turn, 60, "time stands still")
        looked = looks(stack, name) - before
        # the insert itself looks at nothing
        assert looked < CROWD / 2 + math.sqrt(batches), f"{looked} looks while {CROWD} clients lack nothing"
