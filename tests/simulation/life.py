"""One life: a world that follows from a seed, ten minutes of an Odoo in it, and what must hold.

Contract: `Life(seed).run()` lives it; `broken` then is None or what did not hold, and `history` has what happened, as
(time, kind, text, subjects). Two runs of a seed have the same history. `Life(seed, kind="19", events=[...])` is given
what the seed would choose; `events` are (seconds, what is called with the life then), in the place of the faults.
"""
import json
import logging
import random
import socket

from . import clients, faults, holds
from .kernel import Kernel
from .network import Network
from .pooler import Pooler
from .postgres import Row, Server, Statements
from .standins import Connection, ServerError, addon, installed, load, odoo

SECONDS = 600.0
EVENTS = ("look", "reply", "wake", "notify", "connect", "state")


class Broken(Exception):
    """Something that must hold does not."""


class Life:
    def __init__(self, seed, **given):
        load()
        self.seed, self.given = seed, given
        self.plan = random.Random(f"plan {seed}")      # what happens; the kernel has the randomness of how
        plan = self.plan
        self.kernel = Kernel(f"life {seed}", preempt=plan.choice((0.0, 0.0, 0.02, 0.1)))
        self.kernel.failed = self.thread_failed
        self.history, self.began = [], self.kernel.now
        self.broken = self.exception = None
        self.subjects = ()          # whom that concerns
        self.statements = Statements(addon)
        self.connections, self._numbers, self._rows = {}, 0, 0
        self.counts = dict.fromkeys(("faults", "rows", "delivered", "connects", "notified", "woken", "looks"), 0)
        self.armed = []             # [event, how often until then, fault]
        self.looked_at = None       # the database of the latest look
        self.batch = plan.choice((addon.recovery.Recovery.BATCH, 2))    # a small one, so that few clients are many
        self.threads_refused = 0    # how many threads the system will not give
        # The last fault, of any kind, and of those that concern Odoo's own queries. The start is one, too.
        self.disturbed_until = self.pooled_disturbed_until = self.kernel.now + 10.0
        self.pooled_fault_at = 0.0  # when a fault of the latter kind began or ended
        self.due = {}               # browser -> {row: when it committed}
        self.passed_by = 0
        self.epoch = 0              # grows when connections of Odoo's own are lost
        self.build()

    # -- the world -------------------------------------------------------------------------------------------------

    def choose(self, name, options):
        """One of these by the seed, unless it was given."""
        chosen = self.plan.choice(options)
        return self.given.get(name, chosen)

    def build(self):
        plan = self.plan
        self.network = Network(self.kernel)
        names = ["one", "two", "three"][:self.choose("databases", (1, 1, 2, 3))]
        self.primary = Server(self, "server A", "10.0.0.1", ["postgres", *names])
        self.other = Server(self, "server B", "10.0.0.2", ["postgres", *names])
        self.other.standby = True
        self.databases = names
        for server in (self.primary, self.other):
            for name in names:
                server.databases[name].last_id = 100
        self.pooler = None
        if self.choose("pooled", (True, True, True, True, False)):
            self.pooler = Pooler(self, "10.0.0.5", "10.0.0.1", login_retry=plan.choice((1.0, 15.0)),
                                 size=plan.choice((2, 20)))
        self.network.names["pool"] = ["10.0.0.5"] if self.pooler else ["10.0.0.1"]
        self.network.names["direct"] = ["10.0.0.1"]
        self.addresses = dict(self.network.names)       # where the names lead when all is well
        self.hosts = self.choose("hosts", ("direct", "10.0.0.1,10.0.0.2", "10.0.0.2,10.0.0.1"))
        odoo.pooled = {"host": "pool", "port": 6432 if self.pooler else 5432, "user": "odoo"}
        odoo.loaded = names
        self.kind = self.choose("kind", sorted(clients.KINDS))
        self.first_poll = 40.0
        self.tell("world", f"Odoo {self.kind}, {'behind the pooler' if self.pooler else 'without a pooler'}, listens on"
                           f" {self.hosts}; databases {', '.join(names)}")

    def number(self, connection):
        self._numbers += 1
        self.connections[self._numbers] = connection
        return self._numbers

    def connect(self, async_, client_encoding, **info):
        self.counts["connects"] += 1
        self.holds.connects(info)
        self.happens("connect", None)
        return Connection(self, info)

    def closed(self, connection):
        del self.connections[connection.number]

    @staticmethod
    def process_address():
        return "odoo"

    @staticmethod
    def process_number():
        return 1

    def resolve(self, host, port, *_):
        return self.network.getaddrinfo(host, port)

    def start_thread(self, target, name):
        if self.threads_refused and name == "notifier":
            self.threads_refused -= 1
            self.holds.unsent.clear()       # they leave with the next NOTIFY
            self.disturb(self.kernel.now, False)
            raise RuntimeError("can't start new thread")
        self.kernel.start_thread(target, name)

    def clock(self, at=None):
        """The servers' clock, now or at another virtual time."""
        return (self.kernel.now if at is None else at) + 5e8

    def row_number(self):
        self._rows += 1
        return self._rows

    # -- Odoo's own queries ----------------------------------------------------------------------------------------

    def reach(self, database, writing=False):
        """Where Odoo's own queries go. Returns a server, or None if they wait; raises ServerError if they fail."""
        if "pool" not in self.network.names:
            raise ServerError("could not translate host name")
        address = self.network.names["pool"][0]
        path = self.network.path("odoo", address)
        host = self.network.hosts[address, odoo.pooled["port"]]
        while True:
            if path.state == "silent" or host.stopped:
                return None
            if path.state == "refuses" or not host.accepting:
                raise ServerError("Connection refused")
            if isinstance(host, Server):
                break
            if host.paused:
                return None
            path, host = self.network.path("pooler", host.target), self.network.hosts[host.target, 5432]
        if host.starting or database not in host.databases:
            raise ServerError("the database is not there")
        if host.standby and writing:
            raise ServerError("cannot execute INSERT in a read-only transaction", "25006")
        if host.databases[database].locked:
            return None
        return host

    def own_query(self, database, read=None, writing=False):
        """What `read(rows, clock)` returns of the rows of a database; without it the server, for one who writes."""
        kernel = self.kernel
        epoch, deadline = self.epoch, kernel.now + 60.0
        while True:
            server = self.reach(database, writing)
            if server is not None:
                break
            if kernel.now > deadline:
                raise ServerError("timeout")
            kernel.sleep(0.5)
            if epoch != self.epoch:
                raise ServerError("server closed the connection unexpectedly")
        if read is None:
            return server
        found = read(server.databases[database].rows, self.clock())
        kernel.sleep(kernel.random.uniform(0.0003, 0.004))
        if epoch != self.epoch:
            raise ServerError("server closed the connection unexpectedly")
        return found

    def pooled_server(self):
        """The server that Odoo's own connections reach, whether or not they do now."""
        address = self.addresses["pool"][0]
        host = self.network.hosts[address, odoo.pooled["port"]]
        return host if isinstance(host, Server) else self.network.hosts[host.target, 5432]

    # -- what happens ----------------------------------------------------------------------------------------------

    def tell(self, kind, text, *subjects):
        self.history.append((self.kernel.now - self.began, kind, text, subjects))

    def happens(self, event, subject):
        """A moment at which a fault may be aimed."""
        if event == "wake":
            self.counts["woken"] += 1
            self.holds.wakes(subject)
        elif event == "look":
            self.counts["looks"] += 1
            self.looked_at = subject.database
        for entry in self.armed:
            if entry[0] == event:
                entry[1] -= 1
                if entry[1] <= 0:
                    self.armed.remove(entry)
                    self.kernel.at(self.kernel.random.uniform(0, 0.002), entry[2].begin)
                    break

    def disturb(self, until, pooled=True):
        self.disturbed_until = max(self.disturbed_until, until)
        if pooled:
            self.pooled_fault_at = self.kernel.now
            self.pooled_disturbed_until = max(self.pooled_disturbed_until, until)

    def log(self, level, text, exc_info):
        self.tell("log", f"{level}: {text}")
        self.holds.logs(level, text)
        if exc_info:
            self.fail(f"a defect of the addon: {exc_info[1]!r}", exc_info[1])

    def thread_failed(self, thread, exc):
        self.fail(f"the thread {thread.name} ended with {exc!r}", exc)

    def fail(self, text, exc=None, subjects=()):
        if self.broken is None:
            self.broken, self.exception, self.subjects = text, exc, subjects
            self.tell("broken", text)

    # -- rows and who is due them ----------------------------------------------------------------------------------

    def commit(self, row, database):
        """A row's transaction commits."""
        row.committed = self.kernel.now
        database.rows.append(row)
        self.counts["rows"] += 1
        for browser in self.browsers:
            if (browser.session is not None and browser.database == database.name and row.channel in browser.texts
                    and browser.could_get(row)):
                self.due[browser][row] = self.kernel.now
        self.tell("row", f"{row} of {database.name} commits, {self.kernel.now - row.began:.1f} s after its"
                         " transaction began", row)

    def received(self, browser, row):
        before = browser.received.get(row)
        if before is not None and before is browser.session:
            self.fail(f"{browser} receives {row} twice", subjects=(browser, row))
        browser.received[row] = browser.session
        self.counts["delivered"] += self.due[browser].pop(row, None) is not None
        self.tell("receives", f"{browser} receives {row}", browser, row)

    def passed(self, browser, rows):
        """By upstream's rules these rows cannot reach a browser any more."""
        for row in list(rows):
            if self.due[browser].pop(row, None) is not None:
                self.passed_by += 1
                self.tell("passed", f"{row} cannot reach {browser} by upstream's rules", browser, row)

    # -- the ten minutes -------------------------------------------------------------------------------------------

    def run(self):
        """Live. Returns whether all held."""
        self.holds = holds.Holds(self)
        with installed(self):
            addon.listener._all.clear()
            addon.notifier._notifiers.clear()
            kernel, recovery = self.kernel, addon.recovery.Recovery
            batch, recovery.BATCH = recovery.BATCH, self.batch
            try:
                kernel.spawn(self.start, "start", process="odoo")
                self.plan_faults()
                end = kernel.now + SECONDS
                while kernel.now < end and self.broken is None:
                    kernel.run(min(end, kernel.now + self.holds.EVERY))
                    self.holds.check()
                if self.broken is None:
                    self.finish()
            finally:
                logging.disable(logging.CRITICAL)
                kernel.end()
                logging.disable(logging.NOTSET)
                recovery.BATCH = batch
        return self.broken is None

    def start(self):
        plan = self.plan
        settings = addon.settings.Settings({"IMDISPATCHER_DB_HOST": self.hosts, "IMDISPATCHER_DB_PORT": "5432"})
        self.dispatch = clients.KINDS[self.kind](self)
        series = addon.dispatcher.series_of(self.dispatch)
        subscribers = addon.dispatcher.Subscribers(self.dispatch, series)
        self.listener = listener = addon.listener.Listener(subscribers, settings)
        enter = listener.enter

        def entering(phase, *args, **kwargs):
            before = listener.state.phase
            enter(phase, *args, **kwargs)
            if phase != before:
                self.holds.enters(phase)
                self.tell("state", f"the listener is {phase.upper()}")
                self.happens("state", phase)
        listener.enter = entering
        listener.listen("imbus")
        listener.begin()
        self.kernel.spawn(self.dispatch.loop, "upstream's loop", process="odoo")
        self.browsers = []
        channels = {name: [(name, "channel", number) for number in range(3)] for name in self.databases}
        for number in range(1, self.choose("clients", (1, 3, 5)) + 1):
            name = plan.choice(self.databases)
            last = self.choose("last", (0, 100, 100, 100))
            browser = self.dispatch.browser(self, number, name, plan.sample(channels[name], plan.choice((1, 2))), last)
            self.browsers.append(browser)
            self.due[browser] = {}
            browser.begin()
        self.notifiers = []
        for number in range(self.choose("senders", (1, 1, 2))):
            sender = Sender(self, number + 1, channels)
            self.kernel.spawn(sender.run, f"sender {number + 1}", process=sender)

    def plan_faults(self):
        """Arrange the bad days: bursts, with calm between them."""
        if "events" in self.given:
            for time, event in self.given["events"]:
                self.kernel.at(time, event, self)
            return
        plan, time = self.plan, self.plan.choice((0.0, 30.0, 60.0))
        while time < SECONDS - 150.0:
            for fault in faults.burst(self, plan):
                self.kernel.at(time + fault.delay, fault.arm)
            time += plan.uniform(20.0, 180.0)

    def finish(self):
        """The end of the server: everything is over and closed within some seconds."""
        self.dispatch.is_over = True
        for browser in self.browsers:
            browser.went = True
        self.tell("end", "Odoo stops")
        self.kernel.spawn(self.listener.loop_connection.close, "end", process="odoo")
        self.kernel.run(self.kernel.now + 30.0)
        self.holds.check_end()


class Sender:
    """A process that writes rows and NOTIFYs, as Odoo's workers do."""

    def __init__(self, life, number, channels):
        self.life, self.kernel, self.number, self.channels = life, life.kernel, number, channels
        self.plan = random.Random(f"sender {life.seed} {number}")
        self.every = self.plan.choice((2.0, 12.0, 30.0))
        self.notifier = addon.notifier.Notifier(5.0)
        life.notifiers.append(self.notifier)

    def run(self):
        while True:
            self.kernel.sleep(self.plan.uniform(0.2, 2 * self.every))
            self.notifier.close_idle(4.0)       # as a worker does in its own pause
            if self.kernel.now - self.life.began > SECONDS - 90.0:
                return
            try:
                self.transaction()
            except ServerError:
                pass            # the user tries again, or does not

    def transaction(self):
        life, kernel, plan = self.life, self.kernel, self.plan
        name = plan.choice(life.databases)
        channels = plan.sample(self.channels[name], plan.choice((1, 1, 2)))
        began, epoch = kernel.now, life.epoch
        late = plan.random()
        if late < 0.03:
            kernel.sleep(plan.uniform(20.0, 150.0))      # a long transaction; its rows are made at its end
        server = life.own_query(name, writing=True)
        database = server.databases[name]
        rows = [Row(life.row_number(), database.next_id(), json.dumps(channel, separators=(",", ":")), began,
                    life.clock(began)) for channel in channels]
        if late > 0.9:
            kernel.sleep(plan.uniform(0.0, plan.choice((0.1, 5.0, 55.0, 55.0))))   # its COMMIT waits
        server = life.own_query(name, writing=True)
        if epoch != life.epoch or server.databases.get(name) is not database:
            raise ServerError("server closed the connection unexpectedly")
        for row in rows:
            life.commit(row, database)
        if plan.random() < 0.1:
            life.tell("sender", f"sender {self.number} dies before its NOTIFY", *rows)
            return
        payload = json.dumps(channels)
        sql = "notify imbus, %s" if life.kind == "14" else "SELECT \"pg_notify\"('imbus', %s)"
        sent = kernel.now
        life.holds.accepted(payload)
        try:
            self.notifier.send([(sql, (payload,))])
        except BaseException as exc:
            life.fail(f"a caller gets {exc!r} after its commit", exc)
            raise
        if kernel.now - sent > 6.0 + life.network.longest_delay:    # nobody can end getaddrinfo
            life.fail(f"a caller waited {kernel.now - sent:.1f} s for its NOTIFY")


__all__ = ["Life", "Broken", "socket"]
