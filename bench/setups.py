"""Who takes part: Odoo in each of the ways a user could choose, all on one PostgreSQL.

Contract: `start` starts one of them. `Lab` keeps one of each running; `lab.only(name)` stops (SIGSTOP) the listening
processes of all others meanwhile, since every one of them gets every NOTIFY.
"""
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

from stack import ADDON, say
from stack.download.python import published
from stack.faults.hold import ADDONS, HOLDING
from stack.process import children, wait_until
from stack.servers.pgbouncer import PgBouncer

DATABASE = "demo"
# Upstream's parent ends a worker that does not answer it for so long, and ours are stopped on purpose.
UNWATCHED = {"limit_time_real": 100000, "limit_time_real_cron": 100000, "max_cron_threads": 0}

# pooler: which one, or None; addon: "", "published" or "ours"; options: of odoo.conf
Setup = namedtuple("Setup", "title pooler addon options", defaults=[{}])
SETUPS = {
    "direct": Setup("Odoo straight to PostgreSQL", None, ""),
    "pooled": Setup("Odoo behind PgBouncer alone", "transaction", ""),
    "session": Setup("PgBouncer, postgres in session mode", "session", ""),
    "published": Setup("OCA's addon", "transaction", "published"),
    "addon": Setup("this addon", "transaction", "ours"),
    "addon off": Setup("this addon, keep_notify = false", "transaction", "ours", {"imdispatcher_keep_notify": "false"}),
    "addon direct": Setup("this addon, straight to PostgreSQL", None, "ours"),
}
DEAF = {"pooled"}       # hears nothing, which is what it takes part for
RECEIVING = [name for name in SETUPS if name != "addon off"]    # that one receives as "addon" does


def start(stack, name, workers=1, via=None, poolers=None, options=None, hold=None, ready=True, env=None):
    """An Odoo in one of the ways. `via`: the (host, port) it is told in place of PostgreSQL's own. `hold`: what can
    hold its transactions, see stack/faults/hold.py. `ready`: wait until it answers; without, `wait_ready` does."""
    setup = SETUPS[name]
    via = via or (stack.postgres.host, stack.postgres.port)
    odoo = stack.odoo(pooled=setup.pooler is not None, direct=False, name=f"{name.replace(' ', '-')}-{time.time_ns()}")
    options = {**UNWATCHED, **setup.options, **(options or {})}
    load, env, addons = "base,web", dict(env or {}), []
    if setup.pooler is None:
        odoo.db_host, odoo.db_port = via
    elif setup.pooler == "session":
        pooler = (poolers or {}).get(name) or session_pooler(stack, via)
        odoo.db_host, odoo.db_port = pooler.host, pooler.port
    if setup.addon:
        load += f",{ADDON}"
    if hold:
        load += f",{HOLDING}"
        addons = [str(ADDONS)]
        env.update(hold.env)
    if setup.addon == "ours" and setup.pooler:
        odoo.direct_host, odoo.direct_port = via
    if setup.addon == "published":
        folder, _ = published(stack.machine.cache, stack.machine.odoo.series[0])
        options["addons_path"] = ",".join([*stack.machine.odoo.addons, str(folder), *addons])
        env.update({"ODOO_IMDISPATCHER_DB_HOST": via[0], "ODOO_IMDISPATCHER_DB_PORT": str(via[1])})
    return odoo.start(DATABASE, workers=workers, load=load, env=env, options=options, addons=addons, ready=ready)


def session_pooler(stack, via=None):
    """A PgBouncer like the shipped one, but that LISTEN holds: `postgres` in session mode."""
    folder = stack.folder / f"pgbouncer-session-{time.time_ns()}"
    pooler = stack.add(PgBouncer(stack.machine, folder, stack.postgres, databases={"postgres": "pool_mode=session"}))
    pooler.target = via or pooler.target
    return pooler.start()


class Lab:
    """The setups `names`, started on a stack, each with so many HTTP workers."""

    def __init__(self, stack, names, workers=1):
        self.stack, self.names, self.workers = stack, list(names), workers
        self.odoos, self.poolers = {}, {}

    def __enter__(self):
        say("starting " + ", ".join(SETUPS[name].title for name in self.names))
        for name in self.names:
            if SETUPS[name].pooler == "session":
                self.poolers[name] = session_pooler(self.stack)
            self.odoos[name] = start(self.stack, name, self.workers, poolers=self.poolers, ready=False)
        for odoo in self.odoos.values():
            odoo.wait_ready()
        # looked up once: each look reads all of /proc
        self.pids = {name: odoo.evented_pid for name, odoo in self.odoos.items()}
        self.stopped = set()
        return self

    def __exit__(self, *exc):
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for odoo in self.odoos.values():
            odoo.end_by_force()

    def pooler(self, name):
        """Where the queries and NOTIFYs of a setup go: what connects there, with `connect(database)`."""
        if SETUPS[name].pooler is None:
            return self.stack.postgres
        return self.poolers.get(name, self.stack.pgbouncer)

    def pid(self, name):
        """The process that listens for websockets."""
        return self.pids[name]

    @contextlib.contextmanager
    def only(self, name):
        """Nobody else hears meanwhile."""
        others = {self.pid(other) for other in self.names if other != name}
        self.tell(signal.SIGSTOP, others - self.stopped)
        self.tell(signal.SIGCONT, self.stopped - others)
        self.stopped = others
        self.rest(self.pid(name))
        yield

    @staticmethod
    def rest(pid):
        """Wait until a process does nothing: what came while it was stopped is done with."""
        def rests():
            before = cpu(pid)
            time.sleep(0.1)     # the span that is measured
            return cpu(pid) - before < 0.005
        wait_until(rests, 60, "a process that was stopped does not come to rest")

    @staticmethod
    def tell(number, pids):
        for pid in pids:
            os.kill(pid, number)


def http_workers(odoo):
    """The other children; there is no cron worker in a lab."""
    return [pid for pid in children(odoo.pid) if pid != odoo.evented_pid]


def cpu(pid):
    """Seconds of processor time that a process has used, to the nanosecond."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def cpu_of_all(pid):
    """The same of a process with all that it started, those that have ended included: of them to a clock tick."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ended = sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")
    return sum(alive(cpu, each) for each in [pid, *children(pid)]) + ended


def alive(measure, pid):
    """What a process has used; nothing, if it has ended meanwhile."""
    try:
        return measure(pid)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def memory(pid, field="Rss"):
    """MiB: "Rss", or "Pss", where what processes share is shared out among them."""
    return int(re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1]) / 1024


def virtual_memory(pid):
    """MiB of address space, which is what Odoo's limit_memory_soft counts."""
    return int(re.search(r"^VmSize:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[1]) / 1024


def versions(stack):
    """What took part, for the documents: {name: version}."""
    machine = stack.machine
    found = subprocess.run([machine.pgbouncer, "--version"], capture_output=True, text=True,
                           env={**os.environ, **machine.env}).stdout
    release = stack.postgres.query("SHOW server_version")[0][0]
    return {"Odoo": ".".join(map(str, machine.odoo.series)), "PostgreSQL": release.split()[0],
            "PgBouncer": re.search(r"[\d.]+", found)[0],
            "OCA's addon": published(machine.cache, machine.odoo.series[0])[1],
            "Python": sys.version.split()[0]}
