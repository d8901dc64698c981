"""./dev soak: random faults, one after the other, under load; at the end nothing is lost, nothing twice, nothing leaks.

Contract: 50 clients on five channels receive all the time. The faults are a shuffled deck, shuffled anew when it is
through; `--seed` replays a run. After each fault every client has to be up to date again before the next one comes.
Exit code 1 if a notification was lost or came twice, if file descriptors leak, or if a client did not come back.
"""
import argparse
import contextlib
import os
import random
import statistics
import sys
import time
from collections import namedtuple
from pathlib import Path

from stack import Stack, StackError, say
from stack.command import exit_status
from stack.faults import Island, Proxy
from stack.flow import Flow, when_serves
from stack.listeners import wait_listening
from stack.process import wait_until

from . import report

CLIENTS, CHANNELS = 50, 5
PATIENCE = 60       # seconds after a fault in which every client has to be up to date
SILENT = (3, 16)    # seconds a silent loss lasts: it is noticed after 5 to 10
SETTLED = 35        # seconds in which what a lost connection left behind has to be gone
SLACK = 5           # file descriptors that come and go

Fault = namedtuple("Fault", "name began over back longest")     # times of time.monotonic(), seconds, None if never
Process = namedtuple("Process", "rss_mib fds pairs pooled clients")   # fds: all but those of the other three


class Soak:
    """`with Soak(stack, seed) as soak:` … `soak.run(seconds)` … `soak.report()`."""

    def __init__(self, stack, seed=None, workers=2, database="demo"):
        self.stack, self.workers, self.database = stack, workers, database
        self.seed = random.randrange(2**32) if seed is None else seed
        self.dice = random.Random(self.seed)
        self.faults, self.flows = [], []
        self.before = self.after = None
        self.exits = contextlib.ExitStack()

    def __enter__(self):
        with self.exits:
            target = (self.stack.postgres.host, self.stack.postgres.port)
            self.island = None if Island.why_not() else self.exits.enter_context(Island())
            self.proxy = self.island.serve(target) if self.island else Proxy(target)
            if not self.island:
                self.exits.callback(self.proxy.close)
            self.odoo = self.stack.odoo()
            self.exits.callback(self.odoo.kill)
            self.odoo.start(self.database, workers=self.workers, options={
                "imdispatcher_db_host": self.proxy.host, "imdispatcher_db_port": self.proxy.port})
            for _ in range(CHANNELS):
                self.flows.append(self.exits.enter_context(Flow(
                    self.odoo, self.stack.pgbouncer, self.stack.postgres, self.database,
                    clients=CLIENTS // CHANNELS)))
            self.exits = self.exits.pop_all()       # all went well: it ends with us
        return self

    def __exit__(self, *exc):
        self.exits.close()

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
        return [name for name in names if name != "dropped" or self.island]

    def run(self, seconds):
        wait_listening(self.stack.postgres, self.odoo, "bus")
        self.strike("terminated")       # so that all that is opened once is open: it counts as well
        self.before = self.settled()
        deck, ending = [], time.monotonic() + seconds
        while time.monotonic() < ending:
            if not deck:
                deck = self.dice.sample(self.kinds(), len(self.kinds()))
            self.strike(deck.pop())
            self.pause(0.2, 1.0)
        for flow in self.flows:
            flow.stop()
        with contextlib.suppress(StackError):
            wait_until(lambda: not self.missing(), PATIENCE, "")
        self.after = self.settled()

    def strike(self, name):
        began = time.monotonic()
        over = getattr(self, f"fault_{name}")() or time.monotonic()
        try:
            wait_until(lambda: self.up_to_date(over), PATIENCE, "")
            # once more: the listener's own connection is what the next fault is about
            wait_listening(self.stack.postgres, self.odoo, "bus", timeout=PATIENCE)
            back = self.back(over)
        except StackError:
            back = None
        self.faults.append(Fault(name, began, over, back, self.longest(began)))
        say(f"  {name}: " + ("not back" if back is None else f"back after {back:.2f} s,")
            + f" longest delivery {self.faults[-1].longest:.2f} s")

    def up_to_date(self, since):
        """Whether every client has something that was committed after `since`."""
        for flow in self.flows:
            first = min((number for number, at in list(flow.committed.items()) if at > since), default=None)
            if first is None or any(client.last < first for client in flow.clients):
                return False
        return True

    def deliveries(self, since):
        """(commit, arrival) of what was committed after `since`, at every client."""
        for flow in self.flows:
            for client in flow.clients:
                for entry in reversed(list(client.received)):
                    at = flow.committed.get(entry.id, since + 1)
                    if at < since - 5:
                        break       # ids are in about the order of commits
                    if since < at and entry.id in flow.committed:
                        yield client, at, entry.at

    def back(self, over):
        """Seconds from the end of the fault until the last of the clients had something newer."""
        first = {}
        for client, _, arrival in self.deliveries(over):
            first[client] = min(first.get(client, arrival), arrival)
        return max(first.values()) - over

    def longest(self, since):
        return max((arrival - at for _, at, arrival in self.deliveries(since)), default=0.0)

    def missing(self):
        return any(client.last < max(flow.committed, default=0) for flow in self.flows for client in flow.clients)

    # -- what came of it ---------------------------------------------------------------------------------------------

    def process(self):
        pid = self.odoo.evented_pid
        status = Path(f"/proc/{pid}/status").read_text()
        serving = self.odoo.evented_port if self.workers else self.odoo.http_port
        sockets, fds = self.sockets(pid), len(os.listdir(f"/proc/{pid}/fd"))
        pairs = sockets.count("pair")
        tcp = [each for each in sockets if each != "pair"]
        pooled = sum(remote == self.stack.pgbouncer.port for _, remote in tcp)
        clients = sum(local == serving and remote > 0 for local, remote in tcp)      # not the one that listens
        return Process(int(status.split("VmRSS:")[1].split()[0]) / 1024, fds - pairs - pooled - clients,
                       pairs, pooled, clients)

    @staticmethod
    def sockets(pid):
        """What the kernel knows of a process's sockets: (local port, remote port) each, or "pair"."""
        known = {line.split()[6]: "pair" for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            parts = line.split()
            known[parts[9]] = tuple(int(parts[index].split(":")[1], 16) for index in (1, 2))
        found = []
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(known.get(str(link.readlink()).removeprefix("socket:[").rstrip("]")))
        return [each for each in found if each]

    def settled(self):
        """The process once what lost connections left behind is closed."""
        allowed = self.before.fds + SLACK if self.before else 0
        with contextlib.suppress(StackError):
            wait_until(lambda: self.process().fds <= allowed and self.process().clients <= CLIENTS + SLACK,
                       SETTLED if self.before else 2, "")
        return self.process()

    def reopened(self):
        return sum(client.opened - 1 for flow in self.flows for client in flow.clients)

    def counts(self):
        """(sent, received, duplicated, lost): sent is what the table says, times who should have it."""
        sent = received = duplicated = lost = 0
        for flow in self.flows:
            rows = set(flow.rows())
            for client in flow.clients:
                ids = [entry.id for entry in flow.received(client)]
                sent += len(rows)
                received += len(ids)
                duplicated += len(ids) - len(set(ids))
                lost += len(rows - set(ids))
        return sent, received, duplicated, lost

    def problems(self):
        sent, _, duplicated, lost = self.counts()
        found = [f"{fault.name}: not back within {PATIENCE} s" for fault in self.faults if fault.back is None]
        if not sent:
            found.append("nothing was sent")
        if lost or duplicated:
            found.append(f"{lost} lost, {duplicated} duplicated")
        # Upstream forgets a websocket, and with it a pair of sockets, whose query fails while the database is away.
        forgotten = 2 * self.reopened()
        if (self.after.fds > self.before.fds + SLACK or self.after.clients > CLIENTS + SLACK
                or self.after.pairs > self.before.pairs + forgotten + SLACK):
            found.append(f"file descriptors leak: {self.before} before, {self.after} after")
        return found

    def tables(self):
        """[(title, head, rows)]"""
        sent, received, duplicated, lost = self.counts()
        by_kind = {}
        for fault in self.faults:
            by_kind.setdefault(fault.name, []).append(fault)
        faults = []
        for name, some in sorted(by_kind.items()):
            back = [fault.back for fault in some if fault.back is not None]
            faults.append([name.replace("_", " "), len(some), f"{statistics.median(back):.2f}" if back else "never",
                           f"{max(back):.2f}" if len(back) == len(some) else "never",
                           f"{max(fault.longest for fault in some):.2f}"])
        process = [[text, f"{getattr(self.before, name):.0f}", f"{getattr(self.after, name):.0f}"] for name, text in (
            ("rss_mib", "memory (RSS, MiB)"), ("fds", "file descriptors but those below"),
            ("pairs", "sockets in pairs, two a websocket"),
            ("pooled", "connections to the pooler"), ("clients", "connections of clients"))]
        return [
            ("Notifications", ["sent", "received", "duplicated", "lost", "websockets opened again"],
             [[sent, received, duplicated, lost, self.reopened()]]),
            ("Faults", ["fault", "times", "back after: median (s)", "most (s)", "longest from commit to client (s)"],
             faults),
            ("The process that serves the websockets", ["", "before", "after"], process),
        ]


def rst(soak, seconds):
    """The run as a part of a document."""
    lines = [f"{seconds / 60:.0f} minutes, seed {soak.seed}, {CLIENTS} clients on {CHANNELS} channels, "
             f"{soak.workers} HTTP workers.", ""]
    for title, head, rows in soak.tables():
        lines += [*report.heading(title, "-"), *report.list_table(head, rows)]
    return "\n".join(lines)


def show(soak):
    for title, head, rows in soak.tables():
        widths = [max(len(str(row[index])) for row in [head, *rows]) for index in range(len(head))]
        say(f"\n{title}")
        for row in [head, *rows]:
            say("  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main(args=None):
    parser = argparse.ArgumentParser(prog="./dev soak", description="Random faults under load; nothing may be lost.")
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, help="replay the faults of a run")
    parser.add_argument("--workers", type=int, default=2, help="HTTP workers; 0 is the threaded server")
    parser.add_argument("--output", type=Path, help="write the tables to this file, as reStructuredText")
    options = parser.parse_args(args)
    return exit_status("soak", lambda: run(options))


def run(options):
    with Stack(groups=("odoo",)) as stack:
        stack.database("demo")
        with Soak(stack, options.seed, options.workers) as soak:
            say(f"{options.minutes:g} minutes with seed {soak.seed}"
                + ("" if soak.island else f"; no dropping path: {Island.why_not()}"))
            soak.run(options.minutes * 60)
            show(soak)
            if options.output:
                options.output.write_text(rst(soak, options.minutes * 60))
            problems = soak.problems()
        if problems:
            stack.keep_logs()
    for problem in problems:
        print(f"./dev soak: {problem} (--seed {soak.seed})", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
