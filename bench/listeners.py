"""What listeners cost: at rest, for a NOTIFY that concerns nobody, and when PostgreSQL restarts under all of them."""
import contextlib
import math
import re
import time
from pathlib import Path

from stack.process import Program, children, wait_until
from stack.servers.pgbouncer import PgBouncer
from stack.servers.postgres import ODOO_USER, Postgres

from .report import Result
from .setups import DATABASE, alive, cpu, cpu_of_all

TITLE = "Listeners"
NOTE = ("So many listeners on one PostgreSQL, and nothing is sent: this addon's own code in a few processes with no "
        "Odoo around it, each with one client that waits; and beside them what Odoo's own listeners are, "
        "connections that LISTEN and are waited for. CPU is that of all processes of PostgreSQL, and of the pooler; a "
        "wake-up is one of a backend's. It is linear growth that counts: up to PostgreSQL 18 a NOTIFY wakes every "
        "listener of its database, so that a check that sends one costs the square of their number. Then, of "
        "one number: what a NOTIFY costs that concerns nobody; and PostgreSQL is away for some seconds, until 99 % "
        "of the listeners are back. An attempt is a connect, to PostgreSQL or to the pooler.")
SHOWN = ["PostgreSQL's CPU", "the pooler's CPU", "PostgreSQL's CPU for a NOTIFY", "99 % back"]
PLOTS = ["PostgreSQL's CPU"]
NAMES = ["direct", "addon"]
PROCESSES = 4
MANY = 300          # of which a NOTIFY and a restart are measured
NOTIFIED = 20       # a second
AWAY = 5            # seconds
PATIENCE = 120
TABLE = ("CREATE TABLE bus_bus (id serial PRIMARY KEY, create_uid int, create_date timestamp, write_uid int,"
         " write_date timestamp, channel varchar, message varchar)")


class Listeners(Program):
    """A process with so many of them."""

    def __init__(self, server, kind, count, conf, folder):
        super().__init__(f"{count} listeners", folder / f"{kind}-{time.monotonic_ns()}.log")
        self.server, self.kind, self.count, self.conf, self.folder = server, kind, count, conf, folder

    def start(self):
        command = [self.server.source.command[0], Path(__file__).with_name("listening.py"), self.kind, self.count]
        self.launch([*command, self.conf], self.server.env(), self.folder)
        return self

    @property
    def said(self):
        """How many of them listen, and the attempts to connect so far: directly, and to Odoo's own address."""
        lines = re.findall(r"^(\d+) (\d+) (\d+)\n", self.log.read_text(), re.M)
        return tuple(map(int, lines[-1])) if lines else (0, 0, 0)

    @property
    def listening(self):
        return self.said[0]


def run(lab, quick):
    counts, seconds = ([10], 3) if quick else ([10, 100, 150, 300, 1000], 30)
    with cluster(lab.stack, counts[-1]) as (postgres, pooler):
        for count in counts:
            for name in NAMES:
                yield from idle(lab.stack, postgres, pooler, name, count, seconds if name == "addon" else seconds / 3)
        count = min(MANY, counts[-1])
        with listening(lab.stack, postgres, pooler, "addon", count) as started:
            settle(postgres, pooler)
            yield from notified(postgres, pooler, started, count, 10 if quick else 200)
            yield from restarted(postgres, pooler, started, count)


@contextlib.contextmanager
def cluster(stack, most):
    """A PostgreSQL and a pooler for so many listeners and nobody else."""
    postgres = stack.add(Postgres(stack.machine, stack.folder / f"listeners-{time.monotonic_ns()}"))
    postgres.init()
    postgres.stop()
    # nothing of its own meanwhile: what is counted is the listeners'
    postgres.settings = {"max_connections": most + 200, "autovacuum": "off"}
    postgres.start()
    postgres.query(f"CREATE DATABASE {DATABASE} OWNER {ODOO_USER}")
    connection = postgres.connect(DATABASE, user=ODOO_USER)
    connection.cursor().execute(TABLE)
    connection.close()
    # a kept connection each, on which it is asked where the pooler leads to
    pooler = stack.add(PgBouncer(stack.machine, postgres.folder / "pooler", postgres,
                                 settings={"max_client_conn": 3 * most + 100}))
    pooler.start()
    try:
        yield postgres, pooler
    finally:
        pooler.end_by_force()
        postgres.end_by_force()


@contextlib.contextmanager
def listening(stack, postgres, pooler, name, count):
    """So many listeners of a kind, all of which listen: the processes that they are in."""
    server = stack.odoo(name=f"listeners-{name}-{time.monotonic_ns()}")     # never started: its odoo.conf is used
    server.db_host, server.db_port, server.password = pooler.host, pooler.port, postgres.odoo_password
    server.direct_host, server.direct_port = postgres.host, postgres.port
    conf = server.config()
    processes = min(PROCESSES, count)
    shares = [count // processes + (index < count % processes) for index in range(processes)]
    started = [stack.add(Listeners(server, name, share, conf, server.folder)).start() for share in shares]
    try:
        wait_until(lambda: sum(each.listening for each in started) == count, 180,
                   lambda: f"{sum(each.listening for each in started)} of {count} listen: {started[0].last_lines()}")
        yield started
    finally:
        for each in started:
            each.end_by_force()


def idle(stack, postgres, pooler, name, count, seconds):
    """What `count` listeners cost in so many seconds."""
    with listening(stack, postgres, pooler, name, count) as started:
        settle(postgres, pooler)
        before = Sample(postgres, pooler, started)
        time.sleep(seconds)         # the span that is measured
        after = Sample(postgres, pooler, started)
    pooler.restart()        # who comes next finds nothing open
    wait_until(lambda: not backends(postgres), 60, "backends of listeners that have ended do not go away")
    case, span = f"{count} listeners", after.at - before.at
    yield Result("listeners", case, name, "PostgreSQL's CPU", "% of a core", 100 * after.less(before, "server") / span)
    yield Result("listeners", case, name, "wake-ups", "a second", after.less(before, "wakeups") / span)
    yield Result("listeners", case, name, "transaction ids", "a minute", 60 * after.less(before, "ids") / span)
    yield Result("listeners", case, name, "the pooler's CPU", "% of a core", 100 * after.less(before, "pooler") / span)
    yield Result("listeners", case, name, "own CPU of each", "% of a core",
                 100 * after.less(before, "own") / span / count)


def settle(postgres, pooler, timeout=60):
    """Wait until what a start costs is over: the CPU of a second is about that of the one before."""
    spans = [1e9]

    def even():
        before = Sample(postgres, pooler, ())
        time.sleep(1)       # the second whose CPU is compared
        spans.append(Sample(postgres, pooler, ()).less(before, "server"))
        return spans[-1] > 0.8 * spans[-2] - 0.005
    wait_until(even, timeout, "PostgreSQL does not come to rest")


def backends(postgres):
    """The processes of PostgreSQL's that serve a listener, or the pooler."""
    return [pid for pid, in postgres.query("SELECT pid FROM pg_stat_activity WHERE usename = %s", [ODOO_USER])]


class Sample:
    """What was used up to now. Processes that are gone at the second look count for nothing."""

    def __init__(self, postgres, pooler, started):
        self.ids = {0: postgres.query("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")[0][0]}
        self.at = time.monotonic()
        self.server = {pid: alive(cpu, pid) for pid in [postgres.pid, *children(postgres.pid)]}
        self.wakeups = {pid: alive(switches, pid) for pid in backends(postgres)}
        self.pooler = {pooler.pid: cpu(pooler.pid)}
        self.own = {each.pid: cpu(each.pid) for each in started}

    def less(self, before, what):
        now, then = getattr(self, what), getattr(before, what)
        return sum(value - then.get(key, 0) for key, value in now.items() if key in then)


def switches(pid):
    """How often a process went to sleep, and so how often it was woken."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.M)[1])


def notified(postgres, pooler, started, count, number):
    """What PostgreSQL does for a NOTIFY that concerns nobody, in the database that all listen in, and in another."""
    yield Result("listeners", f"{count} listeners", "addon", "open files of each", "",
                 sum(len(list(Path(f"/proc/{each.pid}/fd").iterdir())) for each in started) / count)
    idle = None
    for where, database in (("", "postgres"), ("in their database", "postgres"), ("in another database", DATABASE)):
        with contextlib.closing(postgres.connect(database)) as connection:
            before = Sample(postgres, pooler, started)
            for index in range(number):
                if where:
                    connection.cursor().execute("SELECT pg_notify('imbus', %s)", [f'[["tenant{index}","a channel"]]'])
                time.sleep(1 / NOTIFIED)        # the rate that is asked for
            after = Sample(postgres, pooler, started)
        span = after.at - before.at
        used = {what: after.less(before, what) / span for what in ("server", "wakeups")}
        idle = idle or used
        for what, metric, unit, times in (("server", "PostgreSQL's CPU for a NOTIFY", "ms", 1000),
                                          ("wakeups", "wake-ups of PostgreSQL for a NOTIFY", "", 1)) if where else ():
            yield Result("listeners", f"{count} listeners, {where}", "addon", metric, unit,
                         max(0.0, used[what] - idle[what]) * span / number * times)


def restarted(postgres, pooler, started, count):
    """PostgreSQL is away for some seconds."""
    def said():
        return [sum(each) for each in zip(*(each.said for each in started), strict=True)]
    attempts = said()[1:]
    postgres.stop()
    time.sleep(AWAY)        # the fault is that it lasts
    used = cpu_of_all(pooler.pid)
    postgres.start()
    up_at = time.monotonic()
    wait_until(lambda: said()[0] >= math.ceil(0.99 * count), PATIENCE, lambda: f"{said()[0]} of {count} listen again")
    case, took = f"{count} listeners", time.monotonic() - up_at
    yield Result("listeners", case, "addon", "99 % back", "s", took)
    yield Result("listeners", case, "addon", "PostgreSQL's CPU until then", "s", cpu_of_all(postgres.pid))
    yield Result("listeners", case, "addon", "the pooler's CPU until then", "s", cpu_of_all(pooler.pid) - used)
    for where, before, now in zip(("PostgreSQL", "the pooler"), attempts, said()[1:], strict=True):
        yield Result("listeners", case, "addon", f"attempts of each until then, at {where}", "", (now - before) / count)
