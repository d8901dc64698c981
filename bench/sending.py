"""A message from Odoo's own API to a websocket client: how long it takes, what it costs, how many pass at most.

Contract: an HTTP worker is called, and what sends on the bus is the transaction of that call: whatever Odoo does to
NOTIFY is in every figure. When a row was committed is what PostgreSQL says of it.
"""
import concurrent.futures
import contextlib
import statistics
import time

from stack.clients.client import Sender, commit_clock, compact

from .clients import Swarm, login
from .report import Aim, Result
from .setups import DATABASE, DEAF, cpu, cpu_of_all, http_workers

WORKERS = 4
CALLERS = 2 * WORKERS
MANY = 20           # transactions of one call, where HTTP is not to be what is measured
TITLE = "Sending through Odoo"
NOTE = (f"An HTTP call to one of {WORKERS} workers, whose transaction sends on the bus, and one client that has "
        "subscribed; SCRAM on every hop. Commit to client, the caller's wait and the CPU for a message are of one "
        "message at a time; the workers have sent before. Messages a second: what is committed at most, "
        f"{CALLERS} callers without a pause, each message in a transaction of its own, one for each call or {MANY}. "
        "All of it shares the machine's cores. keep_notify = false is this addon's switch: its NOTIFYs leave as "
        "Odoo's own do, on a new connection each.")
SHOWN = ["commit to client", "the caller waits", "CPU for a message", "messages a second"]
PLOTS = ["commit to client", "messages a second"]
MOST = {1: "one for each call", MANY: f"{MANY} for each call"}
AIMS = [
    *(Aim("commit to client", "p50", setup, to, "at most", value)
      for setup, to, value in [("addon", "direct", 0.55), ("addon", "published", 0.55),
                               ("addon direct", "direct", 0.6)]),
    *(Aim("the caller waits", "p50", "addon", to, "at most", 0.85) for to in ("direct", "published")),
    *(Aim(metric, "p99", setup, to, "at most", 1) for metric in ("commit to client", "the caller waits")
      for setup, to in [("addon", "direct"), ("addon", "published"), ("addon direct", "direct")]),
    Aim("CPU for a message", "the pooler", "addon", "published", "at most", 0.4),
    *(Aim("messages a second", MOST[MANY], "addon", to, "at least", 3) for to in ("direct", "published")),
]
PATIENCE = 5        # seconds after which one counts as lost


def run(lab, quick):
    # many short turns: what drifts on the machine drifts for all alike
    rounds, number, loads, seconds = (1, 25, [MANY], 0.5) if quick else (8, 60, [1, MANY] * 3, 2)
    sides = [Side(lab, name) for name in lab.odoos]
    for _ in range(rounds):
        for side in sides:
            with side.turn() as swarm:
                yield from side.one_at_a_time(swarm, number)
    for side in sides:
        yield from side.slowest()
    for many in loads:
        for side in sides:
            with side.turn() as swarm:
                yield from side.at_most(swarm, many, seconds)


class Side:
    """One setup: its Odoo, and what sends through it."""

    def __init__(self, lab, name):
        self.lab, self.name, self.postgres = lab, name, lab.stack.postgres
        self.odoo, self.workers = lab.odoos[name], http_workers(lab.odoos[name])
        self.sender = Sender(login(self.odoo, DATABASE), lab.pooler(name))
        self.sender.send_orm(0)     # the first one makes the server action
        self.times = {}             # metric: milliseconds of each message, of all turns

    def result(self, metric, case, unit, value):
        return Result("sending", case, self.name, metric, unit, value)

    @contextlib.contextmanager
    def turn(self):
        """The others are stopped, the workers are warm, and the client hears what is sent from now on."""
        with self.lab.only(self.name):
            self.sender.channel = "sending-nobody"
            self.together(lambda: [self.sender.send_orm(0) for _ in range(2)])
            self.sender.channel = f"sending-{time.monotonic_ns()}"
            last, = self.postgres.query("SELECT max(id) FROM bus_bus", dbname=DATABASE)[0]
            with Swarm(self.odoo, DATABASE, 1, lambda _: [self.sender.channel], last=last) as swarm:
                swarm.settle()
                yield swarm

    @staticmethod
    def together(call):
        """All callers at the same time."""
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
            for future in [pool.submit(call) for _ in range(CALLERS)]:
                future.result()

    # -- one message at a time -----------------------------------------------------------------------------------------

    def one_at_a_time(self, swarm, number):
        waits, before = [], self.cpu()
        for _ in range(number):
            began = time.monotonic()
            self.sender.send_orm(0)
            waits.append((time.monotonic() - began) * 1000)
            if not self.heard(swarm, len(waits)):
                break
        used = {what: value - before[what] for what, value in self.cpu().items()}
        committed, arrived = yield from self.outcome(swarm, "one at a time")
        delays = [(at - committed[entry]) * 1000 for entry, at in arrived if entry in committed]
        for metric, values in (("commit to client", delays), ("the caller waits", waits)):
            if values:
                yield self.result(metric, "p50", "ms", statistics.median(values))
                self.times.setdefault(metric, []).extend(values)
        for what, seconds in used.items():
            yield self.result("CPU for a message", what, "ms", seconds * 1000 / len(waits))

    def slowest(self):
        for metric, values in self.times.items():
            yield self.result(metric, "p99", "ms", percentile(values, 99))

    def cpu(self):
        """Seconds that were used up to now."""
        pooler = self.lab.pooler(self.name)
        return {**({} if pooler is self.postgres else {"the pooler": cpu(pooler.pid)}),
                "PostgreSQL": cpu_of_all(self.postgres.pid), "the workers": sum(map(cpu, self.workers))}

    def heard(self, swarm, count):
        """Wait until so many have arrived: whether they have. Who hears nothing is not waited for."""
        deadline = time.monotonic() + PATIENCE
        while self.name not in DEAF and swarm.arrived < count:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.0005)      # the swarm's thread receives, this one looks
        return True

    def outcome(self, swarm, case):
        """({id: time.time() of its commit}, [(id, time.time() of its arrival)]), and what did not arrive as results."""
        rows = self.postgres.query("SELECT id FROM bus_bus WHERE channel = %s", [compact(self.sender.wire_channel)],
                                   dbname=DATABASE)
        committed = commit_clock(self.postgres, DATABASE, [number for number, in rows])
        self.heard(swarm, len(committed))
        clock = time.time() - time.monotonic()
        arrived = [(entry, at + clock) for entry, at in list(swarm.clients[0].received)]
        ids = {entry for entry, _ in arrived}
        yield self.result("lost", case, "", len(set(committed) - ids))
        yield self.result("duplicated", case, "", len(arrived) - len(ids))
        return committed, arrived

    # -- as many as pass -----------------------------------------------------------------------------------------------

    def at_most(self, swarm, many, seconds):
        began, ending = time.time(), time.monotonic() + seconds

        def call():
            while time.monotonic() < ending:
                self.sender.send_orm(0, times=many)
        self.together(call)
        committed, _ = yield from self.outcome(swarm, MOST[many])
        passed = sum(began <= at < began + seconds for at in committed.values())
        yield self.result("messages a second", MOST[many], "", passed / seconds)


def percentile(values, number):
    return statistics.quantiles(values, n=100, method="inclusive")[number - 1]
