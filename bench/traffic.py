"""Traffic through Odoo's own API, and who receives it: hot channels, rare ones, and jobs of cron.

Contract: each message is an HTTP call to a worker whose transaction sends on the bus. A hot channel gets one after the
other and has several clients. A rare channel has one client, gets one message and then nothing: it has to arrive by
itself, and cannot come along with a later one. The table says what was committed, and when; a call that failed is kept,
so that one can tell whether it had been.
"""
import contextlib
import itertools
import json
import random
import re
import threading
import time
from collections import namedtuple

import psycopg2
import requests

from stack import StackError
from stack.clients.client import OdooError, Sender, Session, compact
from stack.clients.jobs import a_job
from stack.process import DEADLINE, wait_until

EVERY = 0.5         # seconds from one message on a hot channel to the next
PAUSE = 0.3         # after a call that failed
LONG_POLL = 55      # seconds after which one has ended for sure
LONGEST = 75        # seconds that a rare message may take
ERRORS = (OdooError, requests.RequestException, ValueError, StackError)

# Why a call fails that has committed. In doubt: the path was lost while the answer to the COMMIT was awaited.
AFTER, NO_ANSWER, IN_DOUBT = "an error after its commit", "no answer", "in doubt"
COMMIT_FAILED = re.compile(r"_cnx\.commit\(\)\n(?: *[~^]+\n)?psycopg2\.")

Call = namedtuple("Call", "channel payload began ended error")      # began, ended: time.monotonic(); error: or None
Row = namedtuple("Row", "id channel payload clock")                 # as committed, and when: time.time()
# sent: rows times who should have them; lost: [Row]; longest: {rare or not: seconds from a commit to a client}
Outcome = namedtuple("Outcome", "longest sent received duplicated lost")


class Account:
    """One user's session for all of them. Odoo ends it when a request finds no database."""

    def __init__(self, odoo, database):
        self.session = Session(odoo, database)
        self.at, self.lock = time.monotonic(), threading.Lock()
        first = Sender(self.session, None, "the first of all")
        first.send_orm("makes the action that the others use")
        self.action = first.action

    def sender(self, channel):
        sender = Sender(self.session, None, channel)
        sender.action = self.action
        return sender

    def log_in_again(self, failed):
        """After a call that began at `failed`, unless somebody has since."""
        with self.lock:
            if self.at < failed:
                self.session.log_in()
                self.at = time.monotonic()


class Speaker(threading.Thread):
    """Sends one message after the other."""

    def __init__(self, traffic, name):
        super().__init__(name=name, daemon=True)
        self.traffic, self.account = traffic, traffic.account
        self.busy = False       # something is sent, or has not arrived
        self.failed = []        # Calls

    def send(self, sender, payload):
        began, error = time.monotonic(), None
        try:
            sender.send_orm(payload)
        except ERRORS as exc:
            error = exc
        call = Call(sender.wire_channel, payload, began, time.monotonic(), error)
        if error:
            self.failed.append(call)
            self.recover(began)
        return call

    def recover(self, failed):
        with contextlib.suppress(*ERRORS):
            self.account.log_in_again(failed)
        self.traffic.ending.wait(PAUSE)


class Hot(Speaker):
    """One message after the other, for several clients."""

    def __init__(self, traffic, channel, clients, last):
        super().__init__(traffic, channel)
        self.sender = self.account.sender(channel)
        self.clients = [self.account.session.subscribe([channel], last=last) for _ in range(clients)]
        self.answered = []      # (payload, when its call began)

    def run(self):
        for number in itertools.count(1):
            self.busy = False
            if self.traffic.ending.wait(EVERY) or not self.traffic.may_send(self):
                return
            call = self.send(self.sender, number)
            if not call.error:
                self.answered.append((number, call.began))

    def first_since(self, since):
        """The first message whose call began after that."""
        later = itertools.takewhile(lambda each: each[1] > since, reversed(list(self.answered)))
        return min((number for number, _ in later), default=None)

    def back(self, since):
        """When all clients had something of later than `since`, None if they have not."""
        first, arrived = self.first_since(since), []
        for client in self.clients:
            newer = itertools.takewhile(lambda each: first and each.payload >= first, reversed(list(client.received)))
            arrived.append(min((each.at for each in newer), default=None))
        return None if None in arrived else max(arrived)

    def arrivals(self):
        """[{channel: [Notification]}] of each client."""
        channel = compact(self.sender.wire_channel)
        return [{channel: list(client.received)} for client in self.clients]


class Rare(Speaker):
    """One message on a channel, and then on another one."""

    def __init__(self, traffic, name, last, seed):
        super().__init__(traffic, name)
        self.client, self.last = None, last
        self.dice = random.Random(seed)
        self.hurry = threading.Event()
        self.since = None       # when the call began whose message has not arrived yet
        self.arrived = {}       # channel -> [Notification], that of now as well
        self.opened = 0
        self.open(0)

    def open(self, number):
        self.sender = self.account.sender(f"{self.name}-{number}")
        self.client = self.account.session.subscribe([self.sender.channel], last=self.last)
        self.arrived[compact(self.sender.wire_channel)] = self.client.received

    def run(self):
        for number in itertools.count(1):
            with contextlib.suppress(*ERRORS):      # one that cannot connect yet goes on trying
                self.client.wait_subscribed()
            self.hurry.wait(self.dice.uniform(0.5, 5))
            self.hurry.clear()
            if not self.traffic.may_send(self):
                return
            self.since = time.monotonic()
            call = self.send(self.sender, number)
            if not call.error or self.traffic.query("SELECT FROM bus_bus WHERE channel = %s",
                                                    [compact(self.sender.wire_channel)]):
                self.await_it()
            self.since, self.busy = None, False
            if self.traffic.ending.wait(self.dice.uniform(0.1, 1)):     # in which it must not come again
                return
            self.client.close()
            self.traffic.closed.append(time.monotonic())
            self.opened += self.client.opened - 1
            self.last = max(self.last, self.client.last)
            self.open(number)

    def await_it(self):
        with contextlib.suppress(StackError):       # what is lost is counted
            wait_until(lambda: self.client.received, LONGEST, "")

    def arrivals(self):
        return [{channel: list(notifications) for channel, notifications in list(self.arrived.items())}]


class Jobs(Speaker):
    """Triggers a job, waits until it has run, and triggers it again."""

    def __init__(self, traffic):
        super().__init__(traffic, "jobs")
        self.ran = []           # seconds it took
        self.late = 0

    def run(self):
        client = self.account.session.subscribe(["job"], last=self.traffic.first)
        with contextlib.suppress(*ERRORS), a_job(None, lambda _: (client, self.account.sender("job"))) as trigger:
            while not self.traffic.ending.wait(2) and self.traffic.may_send(self):
                while not client.queue.empty():     # of a trigger that seemed to fail
                    client.queue.get()
                began = time.monotonic()
                try:
                    self.ran.append(trigger())
                except AssertionError:
                    self.late += 1
                except ERRORS:
                    self.recover(began)
                self.busy = False
            self.recover(time.monotonic())
        client.close()


class Traffic:
    """`with Traffic(stack, odoo, database, hot=5, clients=10, rare=10, seed=1) as traffic:`"""

    def __init__(self, stack, odoo, database, hot, clients, rare, seed):
        self.stack, self.database = stack, database
        self.account = Account(odoo, database)
        self.ending = threading.Event()
        self.going = threading.Event()          # all may send
        self.rare_only = False
        self.closed = []        # when the client of a rare channel was
        self.first = self.query("SELECT coalesce(max(id), 0) FROM bus_bus")[0][0]
        name = f"soak-{time.monotonic_ns()}"
        self.hot = [Hot(self, f"{name}-hot-{number}", clients, self.first) for number in range(hot)]
        self.rare = [Rare(self, f"{name}-rare-{number}", self.first, seed + number) for number in range(rare)]
        self.jobs = Jobs(self) if odoo.facts.cron_listeners else None
        self.like = f'%"{name}-%'

    def __enter__(self):
        for client in self.clients():
            client.wait_subscribed()
        for speaker in self.speakers():
            speaker.start()
        self.going.set()
        return self

    def __exit__(self, *exc):
        self.stop()
        for client in self.clients():
            client.close()

    def speakers(self):
        return [*self.hot, *self.rare, *([self.jobs] if self.jobs else [])]

    def clients(self):
        """Those that are connected at any time."""
        return [*(client for hot in self.hot for client in hot.clients), *(rare.client for rare in self.rare)]

    def may_send(self, speaker):
        """Wait until it may, and is busy; False at the end."""
        while not self.ending.is_set():
            speaker.busy = True
            if self.going.is_set() and not (self.rare_only and not isinstance(speaker, Rare)):
                return True
            speaker.busy = False
            self.ending.wait(0.05)
        return False

    @contextlib.contextmanager
    def rare_alone(self):
        """Nobody but the rare ones sends, and they do at once."""
        self.rare_only = True
        try:
            for rare in self.rare:
                rare.hurry.set()
            yield
        finally:
            self.rare_only = False

    @contextlib.contextmanager
    def paused(self, timeout):
        """Nothing is sent, and all that was has arrived."""
        self.going.clear()
        try:
            with contextlib.suppress(StackError):       # what is lost is counted
                wait_until(lambda: not any(speaker.busy for speaker in self.speakers()), timeout, "")
            yield
        finally:
            self.going.set()

    def stop(self):
        self.ending.set()
        for speaker in self.speakers():
            if speaker.is_alive():
                speaker.join(LONGEST)

    def query(self, sql, params=None):
        """Asked through the pooler, of the server that everybody writes to, as soon as it answers."""
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                with contextlib.closing(self.stack.pgbouncer.connect(self.database)) as connection:
                    cr = connection.cursor()
                    cr.execute(sql, params)
                    return cr.fetchall()
            except psycopg2.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)

    # -- what came of it ----------------------------------------------------------------------------------------------

    def back(self, since):
        """When every client had something newer than `since`, and all rare messages of before; None until then."""
        if any(rare.since is not None and rare.since <= since for rare in self.rare):
            return None
        found = [hot.back(since) for hot in self.hot]
        return None if None in found else max(found)

    def rows(self, since=0.0):
        """What was committed since then (time.time())."""
        found = self.query(
            "SELECT id, channel, message, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM bus_bus"
            " WHERE id > %s AND channel LIKE %s AND create_date >= timezone('UTC', to_timestamp(%s))",
            [self.first, self.like, since - 60])
        rows = [Row(number, channel, payload_of(json.loads(message)), clock)
                for number, channel, message, clock in found]
        return [row for row in rows if row.clock >= since]

    def arrivals(self):
        """[(whether on rare channels, {channel: [Notification]})] of each client."""
        return [*((False, each) for hot in self.hot for each in hot.arrivals()),
                *((True, each) for rare in self.rare for each in rare.arrivals())]

    def compare(self, rows):
        """What came of these rows."""
        by_channel = {}
        for row in rows:
            by_channel.setdefault(row.channel, {})[row.id] = row
        longest, sent, received, duplicated, lost = {False: 0.0, True: 0.0}, 0, 0, 0, []
        for rare, channels in self.arrivals():
            for channel, notifications in channels.items():
                expected = by_channel.get(channel, {})
                came = [each for each in notifications if each.id in expected]
                sent += len(expected)
                received += len(came)
                duplicated += len(came) - len({each.id for each in came})
                lost += (expected[number] for number in expected.keys() - {each.id for each in came})
                longest[rare] = max([longest[rare], *(each.clock - expected[each.id].clock for each in came)])
        return Outcome(longest, sent, received, duplicated, lost)

    def failed(self):
        """(calls that failed, those of them that had committed)"""
        committed = {(row.channel, row.payload) for row in self.rows()}
        calls = [call for speaker in [*self.hot, *self.rare] for call in speaker.failed]
        return calls, [call for call in calls if (compact(call.channel), call.payload) in committed]

    def lingering(self):
        """Clients that are closed and still connected: a long poll goes on to its end."""
        if self.account.session.facts.client != "LongPolling":
            return 0
        return sum(time.monotonic() - at < LONG_POLL for at in list(self.closed))

    def reopened(self):
        return sum(client.opened - 1 for client in self.clients()) + sum(rare.opened for rare in self.rare)


def payload_of(message):
    return message["payload"] if isinstance(message, dict) else message


def why_failed(call):
    """Why a call failed that had committed."""
    if isinstance(call.error, requests.RequestException) and call.error.response is None:
        return NO_ANSWER
    return IN_DOUBT if COMMIT_FAILED.search(getattr(call.error, "trace", "")) else AFTER
