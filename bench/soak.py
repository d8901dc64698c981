"""./dev soak: random faults, one after the other, under load; at the end nothing is lost, nothing twice, nothing leaks.

Contract: all that is sent goes through Odoo's own API (bench/traffic.py). The faults are a shuffled deck, shuffled anew
when it is through; `--seed` replays a run. After each fault every client has to be up to date again before the next
one comes, and what was sent on rare channels meanwhile has to have arrived. Exit code 1 if a notification was lost or
came twice, if a caller got an error for what it had committed, if file descriptors leak, or if a client did not come
back.
"""
import argparse
import contextlib
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter, namedtuple
from pathlib import Path

import psycopg2
import requests

from stack import ADDON, Postgres, Stack, StackError, say
from stack.clients.client import OdooError, Sender, Session
from stack.clients.flow import when_serves
from stack.clients.listeners import wait_listening
from stack.command import exit_status
from stack.faults.hold import ADDONS, HOLDING, NAMING, Hold, name_of
from stack.faults.intruder import Intruder
from stack.faults.move import Move
from stack.faults.network import Island, Proxy
from stack.process import children, wait_until

from . import report
from .listeners import Listeners
from .setups import cpu
from .traffic import AFTER, IN_DOUBT, NO_ANSWER, Traffic, why_failed

CLIENTS, CHANNELS, RARE = 50, 5, 10     # clients of so many hot channels, and as many rare channels at any time
DOOMED = "doomed"   # the database that is dropped
PATIENCE = 80       # seconds after a fault in which every client has to be up to date
SILENT = (3, 16)    # seconds a silent loss lasts: it is noticed after 5 to 10
SETTLED = 35        # seconds in which what a lost connection left behind has to be gone
WEBSOCKETS = CLIENTS + RARE + 1     # that one, too
POOL = 64           # connections that Odoo's pool keeps: db_maxconn
SLACK = 5           # file descriptors that come and go
REST = 20           # seconds in which the CPU of rest is measured: as many as from one look at the table to the next

# began: time.monotonic(); longest: {whether on rare channels: seconds}; back: seconds, None if never
Fault = namedtuple("Fault", "name began back longest")
# ended: sockets whose other end is gone; fds: all but those of the other four
Process = namedtuple("Process", "rss_mib fds pairs pooled clients ended")

# What no subscriber may be hurt by: channels of rows, and payloads of NOTIFYs.
MALFORMED = [None, "", "x", "null", "1", '"', '"x"', "[]", "[[]]", "{}", '{"a": [1]}', '["demo"]', '["demo", null]',
             '[null, "x"]', '[{"a": 1}]', '["demo", {"a": 1}]', '[["demo", "x"], "y"]', "[1e999]", "[" * 500]

# What the longest time from commit to client of each fault consists of.
REASONS = {
    "cut": "a new connection, its checks, and a look at the table; the process does everything else meanwhile",
    "database dropped": "the others do not notice; Odoo loads the models of the database that is made anew",
    "delayed": "the path itself, and each answer on it",
    "dropped": "noticed when heartbeats are not answered (4 to 10 s), then polled every 5 s",
    "frozen": "noticed when heartbeats are not answered (4 to 10 s), then polled every 5 s",
    "listeners come and go": "the processor, which they take to start",
    "malformed flood": "the processor, which the flood takes",
    "malformed rows": "nothing of the fault",
    "moved and back": "NOTIFYs reach the other server until that is noticed (half a minute); meanwhile a look at"
                      " the table (one every 20 to 25 s) finds a row, and the next one, 10 s later, believes it",
    "names lost": "as terminated: the last known address is used",
    "pooler killed before a NOTIFY": "the pooler is away; the NOTIFY leaves when it is back",
    "pooler restart": "the pooler is away; all queries of the clients go through it",
    "PostgreSQL killed before a NOTIFY": "PostgreSQL is away, and recovers",
    "refused": "polled every 5 s",
    "restart fast": "PostgreSQL is away",
    "restart immediate": "PostgreSQL is away, and recovers",
    "sender killed before a NOTIFY": "nobody is left to send it: a look at the table (one every 20 to 25 s) finds the"
                                     " row, and the next one, 10 s later, believes it; before series 16 the client's"
                                     " next poll finds it (one every 50 s)",
    "terminated": "as cut",
    "unlistened": "noticed by the next heartbeat (6 s)",
}


def persist(call):
    """Odoo's workers may keep connections to a database of that name that was dropped; each costs a request.

    Before series 16 the answer to a log-in is then an error of HTTP.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except (OdooError, requests.HTTPError):
            if time.monotonic() > deadline:
                raise


class Soak:
    """`with Soak(stack, seed) as soak:` … `soak.run(minutes)` … `soak.tables()`.

    A run of chosen faults: `soak.begin()`, `soak.strike(name)` for each, `soak.end()`.
    """

    def __init__(self, stack, seed=None, workers=4, listeners=50, database="demo", rest=REST, without=()):
        self.stack, self.workers, self.listeners, self.database = stack, workers, listeners, database
        self.rest, self.without = rest, set(without)
        self.seed = random.randrange(2**32) if seed is None else seed
        self.dice = random.Random(self.seed)
        self.faults, self.seconds, self.asked = [], 0.0, 0.0        # `asked`: minutes
        self.memory = []    # [(seconds since the beginning, RSS in MiB of the process that serves the websockets)]
        self.before = self.after = self.idle_before = self.idle_after = None
        self.exits = contextlib.ExitStack()

    def __enter__(self):
        with self.exits:
            postgres = self.stack.postgres
            self.hold = Hold(self.stack.folder / f"hold-{time.monotonic_ns()}")
            # listener → a path that breaks → what runs statements on its sessions → PostgreSQL
            self.intruder = Intruder((postgres.host, postgres.port))
            self.exits.callback(self.intruder.close)
            target = (self.intruder.host, self.intruder.port)
            self.island = None if Island.why_not() else self.exits.enter_context(Island())
            self.proxy = self.island.serve(target) if self.island else Proxy(target)
            if not self.island:
                self.exits.callback(self.proxy.close)
            # where the pooler is pointed to, and back; it runs only then
            self.copy = self.stack.add(Postgres(self.stack.machine, self.stack.folder / f"copy-{time.monotonic_ns()}"))
            self.exits.callback(self.copy.end_by_force)
            self.exits.callback(self.drop_doomed)
            self.stack.database(DOOMED)
            self.odoo = self.stack.odoo()
            self.exits.callback(self.odoo.kill)
            self.start()
            self.others = self.stack.odoo()     # never started: its odoo.conf is used
            self.conf = self.others.config()
            self.traffic = self.exits.enter_context(Traffic(
                self.stack, self.odoo, self.database, CHANNELS, CLIENTS // CHANNELS, RARE, self.seed))
            self.open_doomed()
            self.exits.callback(lambda: self.doomed.close())
            self.exits = self.exits.pop_all()       # all went well: it ends with us
        return self

    def start(self):
        self.odoo.start(
            f"{self.database},{DOOMED}", workers=self.workers, addons=[ADDONS], env=self.hold.env,
            load=f"base,web,{NAMING},{ADDON},{HOLDING}", options={
                "imdispatcher_db_host": f"{name_of(self.proxy.host)},{name_of(self.copy.host)}",
                "imdispatcher_db_port": f"{self.proxy.port},{self.copy.port}",
                "imdispatcher_db_sslmode": "disable"})      # the intruder reads what passes

    def __exit__(self, *exc):
        self.exits.close()

    def drop_doomed(self):
        with contextlib.suppress(psycopg2.OperationalError):        # interrupted while PostgreSQL was away
            self.stack.drop(DOOMED)

    def open_doomed(self):
        """A client in the database that is to be dropped, which has received something."""
        session = persist(lambda: Session(self.odoo, DOOMED))
        self.doomed = session.subscribe([DOOMED]).wait_subscribed()
        sender = Sender(session, None, DOOMED)
        persist(lambda: sender.send_orm("before it is dropped"))
        if not self.doomed.next():
            raise StackError(f"nothing is received in the database {DOOMED}")

    # -- the faults; each returns when it is over, and says when that was ------------------------------------------

    def fault_terminated(self):
        pid, = wait_listening(self.stack.postgres, self.odoo, "bus")
        self.stack.postgres.query("SELECT pg_terminate_backend(%s)", [pid])

    def fault_cut(self):
        self.proxy.cut()

    def fault_frozen(self):
        self.proxy.freeze()
        self.pause(*SILENT)
        self.proxy.heal()

    def fault_dropped(self):
        self.island.drop()
        self.pause(*SILENT)
        self.island.heal()

    def fault_refused(self):
        self.proxy.refuse()
        self.pause(2, 10)
        self.proxy.heal()

    def fault_delayed(self):
        self.proxy.delay = self.dice.uniform(0.02, 0.3)
        self.pause(2, 6)
        self.proxy.heal()

    def fault_restart_fast(self):
        self.restart("fast")

    def fault_restart_immediate(self):
        self.restart("immediate")

    def fault_pooler_restart(self):
        self.stack.pgbouncer.stop()
        self.pause(0, 3)
        self.stack.pgbouncer.start()
        return when_serves(self.stack.pgbouncer)

    def fault_malformed_flood(self):
        connection = self.stack.postgres.connect(user="odoo")
        ending = time.monotonic() + self.dice.uniform(1, 3)
        while time.monotonic() < ending:
            payload = "".join(map(chr, self.dice.choices(range(1, 0x800), k=self.dice.randrange(40))))
            connection.cursor().execute("SELECT pg_notify('imbus', %s)", [payload])
        connection.close()

    def fault_malformed_rows(self):
        with contextlib.closing(self.stack.postgres.connect(self.database)) as connection:
            cr = connection.cursor()
            for channel in MALFORMED:
                cr.execute("INSERT INTO bus_bus (channel, message, create_date, write_date, create_uid, write_uid)"
                           " VALUES (%s, %s, timezone('UTC', now()), timezone('UTC', now()), 1, 1)",
                           [channel, self.dice.choice(["x", "null", "{}"])])
        with contextlib.closing(self.stack.postgres.connect(user="odoo")) as connection:
            for payload in MALFORMED:
                connection.cursor().execute("SELECT pg_notify('imbus', %s)", [payload])
        self.pause(0, 2)

    def fault_unlistened(self):
        self.intruder.run(self.dice.choice(["UNLISTEN imbus", "UNLISTEN *", "DISCARD ALL"]))

    def fault_names_lost(self):
        self.hold.nameless(True)
        try:
            self.fault_terminated()
            self.pause(3, 10)
        finally:
            self.hold.nameless(False)

    def fault_pooler_killed_before_a_notify(self):
        return self.killed_before_a_notify(self.stack.pgbouncer)

    def fault_postgresql_killed_before_a_notify(self):
        return self.killed_before_a_notify(self.stack.postgres)

    def killed_before_a_notify(self, server):
        with self.held():
            server.kill()
        self.pause(0.5, 3)
        server.start()
        return when_serves(self.stack.pgbouncer)

    def fault_sender_killed_before_a_notify(self):
        with self.held():
            for pid in self.hold.pids():
                os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def held(self):
        """In each worker a transaction is between its commit and its NOTIFY."""
        with self.traffic.rare_alone(), self.hold:
            self.hold.wait(max(1, self.workers))
            yield

    def fault_moved_and_back(self):
        """The pooler is pointed to a promoted copy and, once the listener is there, to a copy of that."""
        postgres, pooler = self.stack.postgres, self.stack.pgbouncer
        self.copy.follow(postgres)
        self.copy.start()
        try:
            Move(pooler, postgres, self.copy).now("pause")
            wait_listening(self.copy, self.odoo, "bus", timeout=PATIENCE)
            postgres.stop()
            postgres.follow(self.copy)
            postgres.start()
            Move(pooler, self.copy, postgres).now("pause")
            wait_listening(postgres, self.odoo, "bus", timeout=PATIENCE)
        finally:
            self.copy.end_by_force()

    def fault_database_dropped(self):
        self.stack.drop(DOOMED)
        self.pause(2, 8)
        over = time.monotonic()
        self.doomed.close()
        self.stack.database(DOOMED)
        self.open_doomed()
        return over

    def fault_listeners_come_and_go(self):
        some = [Listeners(self.others, "addon", count, self.conf, self.others.folder)
                for count in (self.listeners // 2, self.listeners - self.listeners // 2) if count]
        try:
            for each in some:
                each.start()
            wait_until(lambda: sum(each.listening for each in some) == self.listeners, PATIENCE,
                       lambda: f"not all of the listeners that come listen: {some[0].last_lines()}")
            self.pause(0, 3)
        finally:
            for each in some:
                each.end_by_force()

    def restart(self, mode):
        self.stack.postgres.stop(mode)
        self.pause(0, 3)
        self.stack.postgres.start()
        accepts = time.monotonic()
        return max(accepts, when_serves(self.stack.pgbouncer))

    def pause(self, shortest, longest):
        """What lasts for a while is the fault itself."""
        time.sleep(self.dice.uniform(shortest, longest))

    # -- the run -----------------------------------------------------------------------------------------------------

    def kinds(self):
        names = [name.removeprefix("fault_") for name in dir(self) if name.startswith("fault_")]
        without = {"dropped"} if not self.island else set()
        without |= {name for name in names if title(name) in self.without}
        if not self.workers:
            without.add("sender_killed_before_a_notify")        # it is the whole server
        if not self.listeners:
            without.add("listeners_come_and_go")
        return [name for name in names if name not in without]

    def run(self, minutes):
        self.asked = minutes
        self.begin()
        deck, ending = [], time.monotonic() + 60 * minutes
        while time.monotonic() < ending:
            if not deck:
                deck = self.dice.sample(self.kinds(), len(self.kinds()))
            self.strike(deck.pop())
            self.pause(0.2, 1.0)
        self.end()

    def begin(self):
        self.began = time.monotonic()
        wait_listening(self.stack.postgres, self.odoo, "bus")
        self.strike("terminated")       # so that all that is opened once is open: it counts as well
        with self.traffic.paused(PATIENCE):
            self.idle_before, self.before = self.idle(), self.settled()

    def end(self):
        with self.traffic.paused(PATIENCE):
            with contextlib.suppress(StackError):       # what is lost is counted
                rows = self.traffic.rows()
                wait_until(lambda: not self.traffic.compare(rows).lost, PATIENCE, "")
            self.idle_after, self.after = self.idle(), self.settled()
            self.leaked = self.leaks(self.after)
        self.traffic.stop()
        self.seconds = time.monotonic() - self.began
        self.total = self.traffic.compare(self.traffic.rows())
        self.failed, self.why_failed = self.callers()
        for row in self.total.lost:
            say(f"  lost: {self.story(row)}")

    def strike(self, name):
        began, clock = time.monotonic(), time.time()
        over = getattr(self, f"fault_{name}")() or time.monotonic()
        back = None
        with contextlib.suppress(StackError):
            wait_until(lambda: self.traffic.back(over), PATIENCE, "")
            back = self.traffic.back(over) - over
            rows = [row for row in self.traffic.rows(clock) if row.clock < clock + over - began]
            wait_until(lambda: not self.traffic.compare(rows).lost, PATIENCE, "")
            # the listener's own connection is what the next fault is about
            wait_listening(self.stack.postgres, self.odoo, "bus", timeout=PATIENCE)
        longest = self.traffic.compare(self.traffic.rows(clock)).longest
        self.faults.append(Fault(title(name), began, back, longest))
        self.memory.append((time.monotonic() - self.began, self.rss()))
        say(f"  {title(name)}: " + ("not back" if back is None else f"back after {back:.2f} s")
            + f", longest {longest[False]:.2f} s, on rare channels {longest[True]:.2f} s")

    # -- what came of it ---------------------------------------------------------------------------------------------

    def idle(self):
        """[(what, % of a core that it takes while nothing is sent)]"""
        evented = self.odoo.evented_pid
        programs = {"the process that serves websockets": [evented],
                    "the pooler": [self.stack.pgbouncer.pid],
                    "PostgreSQL": [self.stack.postgres.pid, *children(self.stack.postgres.pid)]}
        if self.workers:
            programs["all other processes of Odoo"] = [
                self.odoo.pid, *(pid for pid in children(self.odoo.pid) if pid != evented)]

        def used():
            found = {}
            for what, pids in programs.items():
                for pid in pids:
                    with contextlib.suppress(OSError):      # it has ended: what it used is not of rest
                        found[what, pid] = cpu(pid)
            return found
        before, at = used(), time.monotonic()
        time.sleep(self.rest)       # the span that is measured
        after, span = used(), time.monotonic() - at
        return {what: sum(100 * (after[key] - before[key]) / span for key in before.keys() & after.keys()
                          if key[0] == what) for what in programs}

    def process(self):
        pid = self.odoo.evented_pid
        serving = self.odoo.evented_port if self.workers else self.odoo.http_port
        fds, sockets = self.descriptors(pid)
        pairs, ended = sockets.count("pair"), sockets.count(None)
        tcp = [each for each in sockets if isinstance(each, tuple)]
        pooled = sum(remote == self.stack.pgbouncer.port for _, remote in tcp)
        clients = sum(local == serving and remote > 0 for local, remote in tcp)      # not the one that listens
        return Process(self.rss(), fds - pairs - pooled - clients - ended, pairs, pooled, clients, ended)

    def rss(self):
        status = Path(f"/proc/{self.odoo.evented_pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    @staticmethod
    def descriptors(pid):
        """How many, and what the kernel knows of those that are sockets: (local port, remote port) each, "pair" or
        None, which is one that was reset."""
        links = []
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                links.append(str(link.readlink()))
        # after the list: what was opened since is not in it, and what was closed since is as good as reset
        known = {line.split()[6]: "pair" for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            parts = line.split()
            known[parts[9]] = tuple(int(parts[index].split(":")[1], 16) for index in (1, 2))
        sockets = [link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:[")]
        return len(links), [known.get(inode) for inode in sockets]

    def settled(self):
        """The process once what lost connections left behind is closed."""
        def is_settled():
            self.sample = self.process()
            return self.before and not self.leaks(self.sample)

        with contextlib.suppress(StackError):
            wait_until(is_settled, SETTLED if self.before else 2, "")
        return self.sample

    def leaks(self, after):
        """Whether a process has more than the one of before had."""
        before = self.before
        # Odoo's pool closes a connection that was reset when it would use it next.
        return (after.fds > before.fds + SLACK or after.ended > before.ended + POOL
                or after.clients > self.most_clients() or after.pairs > before.pairs + SLACK)

    def most_clients(self):
        return WEBSOCKETS + self.traffic.lingering() + SLACK

    def callers(self):
        """(calls that failed, Counter of why those of them did that had committed).

        A sender that is killed cannot answer, which is no error.
        """
        killed = [(fault.began, fault.began + PATIENCE) for fault in self.faults if fault.name.startswith("sender")]
        failed, committed = self.traffic.failed()
        found = Counter()
        for call in committed:
            why = why_failed(call)
            if why == NO_ANSWER and not any(begin < call.ended and call.began < end for begin, end in killed):
                why = AFTER
            if why == AFTER:
                say(f"  an error after the commit of {call.channel}: {call.error!r} {getattr(call.error, 'trace', '')}")
            found[why] += 1
        return len(failed), found

    def story(self, row):
        """Of a row that did not arrive: when it was committed, and what else was on its channel then."""
        clock = time.time() - time.monotonic()
        fault = max((fault for fault in self.faults if fault.began + clock < row.clock),
                    key=lambda fault: fault.began, default=None)
        when = f"{row.clock - fault.began - clock:.1f} s after the beginning of {fault.name}" if fault else "at first"
        same = sorted(other for other in self.traffic.rows(row.clock - 30)
                      if other.channel == row.channel and abs(other.id - row.id) < 200)
        return (f"row {row.id} on {row.channel}, committed {when}; on its channel were committed "
                + ", ".join(f"{other.id} ({other.clock - row.clock:+.1f} s)" for other in same))

    def problems(self):
        sent, duplicated, lost = self.total.sent, self.total.duplicated, len(self.total.lost)
        found = [f"{fault.name}: not back within {PATIENCE} s" for fault in self.faults if fault.back is None]
        if not sent:
            found.append("nothing was sent")
        if self.traffic.jobs and not self.traffic.jobs.ran:
            found.append("no job of cron ran")
        if lost or duplicated:
            found.append(f"{lost} lost, {duplicated} duplicated")
        if self.why_failed[AFTER]:
            found.append(f"{self.why_failed[AFTER]} callers got an error for what they had committed")
        if self.leaked:
            found.append(f"file descriptors leak: {self.before} before, {self.after} after")
        return found

    def tables(self):
        """[(title, head, rows)]"""
        by_kind = {}
        for fault in self.faults:
            by_kind.setdefault(fault.name, []).append(fault)
        faults = []
        for name, some in sorted(by_kind.items(), key=lambda each: each[0].lower()):
            back = [fault.back for fault in some if fault.back is not None]
            faults.append([name, len(some), f"{statistics.median(back):.2f}" if back else "never",
                           f"{max(back):.2f}" if len(back) == len(some) else "never",
                           *(f"{max(fault.longest[rare] for fault in some):.2f}" for rare in (False, True)),
                           REASONS[name]])
        process = [[text, f"{getattr(self.before, name):.0f}", f"{getattr(self.after, name):.0f}"] for name, text in (
            ("rss_mib", "memory (RSS, MiB)"), ("fds", "file descriptors but those below"),
            ("pairs", "sockets in pairs, two a websocket"), ("ended", "sockets that were reset"),
            ("pooled", "connections to the pooler"), ("clients", "connections of clients"))]
        # after the first fault of each eighth of the run: whether it still grows
        memory = [next((each for each in self.memory if each[0] >= self.seconds * part / 8), self.memory[-1])
                  for part in range(9)]
        total, jobs = self.total, self.traffic.jobs
        return [
            ("Notifications", ["sent", "received", "duplicated", "lost", "websockets opened again"],
             [[total.sent, total.received, total.duplicated, len(total.lost), self.traffic.reopened()]]),
            ("Callers", ["calls that failed", "of them had committed: error", "killed before its answer",
                         "COMMIT in doubt: no answer from PostgreSQL"],
             [[self.failed, *(self.why_failed[why] for why in (AFTER, NO_ANSWER, IN_DOUBT))]]),
            *([("Jobs of cron that were triggered", ["ran", "longest until it ran (s)", "not within a minute"],
                [[len(jobs.ran), f"{max(jobs.ran, default=0):.2f}", jobs.late]])] if jobs else []),
            ("Faults", ["fault", "times", "back after: median (s)", "most (s)", "longest from commit to client (s)",
                        "the same on rare channels (s)", "which is"], faults),
            ("The process that serves the websockets", ["", "before", "after"], process),
            ("Its memory over the run", ["", *(f"{at / 60:.0f} min" for at, _ in memory)],
             [["RSS (MiB)", *(f"{mib:.0f}" for _, mib in memory)]]),
            ("CPU while nothing is sent", ["% of a core", "before", "after"],
             [[what, f"{used:.1f}", f"{self.idle_after[what]:.1f}"] for what, used in self.idle_before.items()]),
        ]


def title(name):
    return name.replace("_", " ").replace("postgresql", "PostgreSQL").replace("notify", "NOTIFY")


NOTE = f"""{CLIENTS} clients receive on {CHANNELS} hot channels, on each of which a message is sent twice a second, and
{RARE} clients on a channel each that gets one message and then nothing: that has to arrive by itself, not along with a
later one. Every message is an HTTP call to a worker whose transaction sends it. What is lost and what came twice is
counted against the table, times from commits are PostgreSQL's own. Back: seconds from the end of the fault until the
last client of a hot channel had something newer. Longest: of all that was committed from the beginning of the fault to
that of the next. A call that failed and had committed nothing, as the database was away, is no error of the bus; Odoo
logs out whose request finds no database, so that after some faults the senders have to log in first, which is in what
it took until they were back."""
NOTE_OF_POLLS = """A long poll goes on to its end, up to 50 s, also if its client has gone: those of the last faults are
among the connections and in the CPU time of after the run."""


def rst(soak):
    """The run as a document."""
    without = "".join(f' "{name}"' for name in sorted(soak.without))
    polling = soak.traffic.account.session.facts.client == "LongPolling"
    lines = [*report.heading(f"A soak on Odoo {soak.odoo.series[0]}: faults at random, under load", "="),
             f"Made by ``./dev soak --minutes {soak.asked:g} --seed {soak.seed} --series {soak.odoo.series[0]}"
             f"{' --without' + without if without else ''}``: Odoo {'.'.join(map(str, soak.odoo.series))}, "
             f"{soak.workers} HTTP workers, {soak.listeners} more listeners that come and go.", "", NOTE, "",
             *([NOTE_OF_POLLS, ""] if polling else [])]
    for name, head, rows in soak.tables():
        lines += [*report.heading(name, "-"), *report.csv_table(head, rows)]
    return "\n".join(lines).rstrip() + "\n"


def show(soak):
    for name, head, rows in soak.tables():
        widths = [max(len(str(row[index])) for row in [head, *rows]) for index in range(len(head))]
        say(f"\n{name}")
        for row in [head, *rows]:
            say("  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main(args=None):
    parser = argparse.ArgumentParser(prog="./dev soak", description="Random faults under load; nothing may be lost.")
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, help="replay the faults of a run")
    parser.add_argument("--workers", type=int, default=4, help="HTTP workers (4); 0 is the threaded server")
    parser.add_argument("--listeners", type=int, default=50, help="more listeners that come and go (50)")
    parser.add_argument("--series", type=int, help="of Debian's Odoos (19, or 14)")
    parser.add_argument("--without", nargs="+", default=[], choices=sorted(REASONS), metavar="FAULT",
                        help="faults that are left out, by their names in the table")
    parser.add_argument("--output", type=Path, help="write the tables to this file, as reStructuredText")
    options = parser.parse_args(args)
    return exit_status("soak", lambda: run(options))


def run(options):
    with Stack(groups=("odoo",), series=options.series) as stack:
        stack.database("demo")
        with Soak(stack, options.seed, options.workers, options.listeners, without=options.without) as soak:
            say(f"{options.minutes:g} minutes with seed {soak.seed}"
                + ("" if soak.island else f"; no dropping path: {Island.why_not()}"))
            soak.run(options.minutes)
            show(soak)
            if options.output:
                options.output.write_text(rst(soak))
            problems = soak.problems()
        if problems:
            stack.keep_logs()
    for problem in problems:
        print(f"./dev soak: {problem} (--seed {soak.seed})", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
