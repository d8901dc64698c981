"""A steady flow of notifications and what came of it: the measure of every fault.

Four times a second a row is inserted, committed and notified, as Odoo does it, through the pooler; clients that have
seen a notification before receive. The table is what was sent: at the end every row has to have arrived at every
client, once, in the order of its id.
"""
import contextlib
import statistics
import threading
import time

import psycopg2

from ..process import DEADLINE, wait_until
from .client import Sender, Session, compact

EVERY = 0.25
PUSHED = 9          # notifications that are looked at, sent in more than two seconds
INSTANT = 0.5       # seconds; it is some hundredths, and a poll comes every few seconds


class Flow:
    """`with Flow(odoo, pooler, postgres) as flow:` … `flow.back_after(event)` … `flow.check()`."""

    def __init__(self, odoo, pooler, postgres, database="demo", channel=None, clients=1, every=EVERY):
        self.postgres, self.database = postgres, database
        self.channel = channel or f"flow-{time.monotonic_ns()}"
        self.session = Session(odoo, database)
        self.sender = Sender(self.session, pooler, self.channel)
        self.every = every
        first = self.sender.send_sql("seen before")
        self.clients = [self.session.subscribe([self.channel], last=first) for _ in range(clients)]
        self.first = first
        self.committed = {}     # id -> time.monotonic() right after the commit
        self.errors = []
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.run, name="flow", daemon=True)

    def __enter__(self):
        for client in self.clients:
            client.wait_subscribed()
        self.thread.start()
        self.wait_received(2)
        return self

    def __exit__(self, *exc):
        self.stop()
        for client in self.clients:
            client.close()
        self.sender.close()

    def run(self):
        number = 0
        while not self.ending.wait(self.every):
            number += 1
            try:
                sent = self.sender.insert(number)
                self.committed[sent] = time.monotonic()
                self.sender.notify(compact([self.sender.wire_channel]))
            except psycopg2.Error as exc:
                self.errors.append(exc)
                if self.sender.connection:
                    self.sender.connection.close()

    def stop(self):
        self.ending.set()
        if self.thread.is_alive():
            self.thread.join(30)

    def received(self, client=None):
        client = client or self.clients[0]
        return [n for n in list(client.received) if n.id > self.first]

    def wait_received(self, count, timeout=DEADLINE, since=0.0):
        """Wait until every client got so many that were committed after `since`."""
        def enough(client):
            return sum(1 for n in self.received(client) if self.committed.get(n.id, 0) > since) >= count
        wait_until(lambda: all(map(enough, self.clients)), timeout,
                   lambda: f"not {count} notifications within {timeout} s; errors: {self.errors[-2:]}")

    def back_after(self, event, timeout=DEADLINE):
        """Seconds from `event` (time.monotonic) to the first notification at every client that was sent after it."""
        self.wait_received(1, timeout, since=event)
        return max(min(n.at for n in self.received(client) if self.committed.get(n.id, 0) > event)
                   for client in self.clients) - event

    def took(self, since=0.0):
        """The times from commits after `since` to the arrivals, in seconds."""
        return [n.at - self.committed[n.id] for client in self.clients for n in self.received(client)
                if self.committed.get(n.id, 0) > since]

    def slowest(self, since=0.0):
        return max(self.took(since), default=0.0)

    def check_pushed(self, since=None):
        """What is sent from now on, or since then, is pushed, and not found by asking every few seconds.

        The median tells them apart: a busy machine delays some notifications, a poll all but the latest.
        """
        since = time.monotonic() if since is None else since
        self.wait_received(PUSHED, since=since)
        median = statistics.median(self.took(since))
        assert median < INSTANT, f"half of the notifications took longer than {median:.2f} s"

    def rows(self):
        """The ids of what was sent, asked of the table."""
        rows = self.postgres.query("SELECT id FROM bus_bus WHERE channel = %s AND id > %s ORDER BY id",
                                   [compact(self.sender.wire_channel), self.first], dbname=self.database)
        return [number for number, in rows]

    def check(self, timeout=DEADLINE):
        """Stop sending; every row arrived at every client, once, in order. Returns how many rows."""
        self.stop()
        rows = self.rows()
        wait_until(lambda: all(len(self.received(client)) >= len(rows) for client in self.clients), timeout,
                   lambda: f"lost: {[set(rows) - {n.id for n in self.received(c)} for c in self.clients]}")
        for client in self.clients:
            assert [n.id for n in self.received(client)] == rows, "lost, twice, or out of order"
        return len(rows)


def when_serves(pooler, databases=("postgres", "demo"), timeout=DEADLINE):
    """Wait until the pooler serves: each database, since each has a pool that waits `server_login_retry` by itself.

    :return: time.monotonic() of then
    """
    def serves():
        try:
            for database in databases:
                with contextlib.closing(pooler.connect(database)) as connection:
                    connection.cursor().execute("SELECT 1")
            return True
        except psycopg2.Error:
            return False
    wait_until(serves, timeout, "it does not serve again")
    return time.monotonic()
