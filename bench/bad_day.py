"""./dev bad-day: the same faults on every setup at the same moment, and what each made of it.

Contract: each setup has an Odoo, a path to PostgreSQL that can break, and a client on a channel of its own, on which
notifications are sent four times a second past everything that breaks. What comes between a commit and its NOTIFY hits
one message that Odoo's own API sends, with nothing after it. One PostgreSQL serves all. Each fault is watched for 90 s
at most after it is over. Exits 0 when this addon came back from every one, nobody lost anything with it, and no caller
got an error.
"""
import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import requests

from stack import Stack, StackError, say
from stack.clients.client import OdooError, commit_clock
from stack.clients.flow import Flow, when_serves
from stack.command import exit_status
from stack.faults.hold import Hold
from stack.faults.network import Proxy
from stack.process import DEADLINE, wait_until

from . import report
from .setups import DATABASE, SETUPS, session_pooler, start, versions

NAMES = ["direct", "session", "published", "addon"]
WATCH = 90          # seconds after a fault is over
REFUSED = 20        # seconds
AWAY = 3            # seconds that a server is, after a NOTIFY failed
LAST = 3            # seconds that what was sent last may take

# back: seconds from the fault's end to the first arrival of something sent after it; slowest: commit to arrival;
# caller: what whoever called Odoo's API got, "" where nobody did
Outcome = namedtuple("Outcome", "fault setup back slowest sent lost duplicated caller")

NOTE = f"""Back: seconds from the end of the fault until the client had something that was sent after it. Longest:
seconds that a notification took from its commit to the client, whenever it was sent.
Lost: did not arrive within the {WATCH} s that were watched. The client keeps its last id, as a browser's does, so what
it missed comes along with the next notification that wakes it.

The path is that of the listening connection: from this addon and from OCA's to PostgreSQL, from PgBouncer
in session mode to PostgreSQL, and from Odoo straight to PostgreSQL, where all of Odoo's queries take it, too.

What comes between a commit and its NOTIFY hits one message, sent through Odoo's own API on a channel that gets nothing
else: there is no next notification that it could come along with. Back is then when it arrived, counted from the end of
the fault and 0 if that was before. The server is away when the NOTIFY is tried, and for {AWAY} s more. Odoo straight to
PostgreSQL has no pooler that could be restarted. Who kills the sender takes the caller's answer from everybody."""


class Steady(Flow):
    """Four notifications a second."""

    caller = ""

    def __enter__(self):
        super().__enter__()
        self.wait_received(6)       # the first ones may come without a NOTIFY: who subscribes asks once
        return self

    def back(self, over):
        """When the first that was committed after `over` came, or None yet."""
        first = min((number for number, at in list(self.committed.items()) if at > over), default=None)
        if first is None or self.clients[0].last < first:
            return None
        return next(entry.at for entry in self.received() if entry.id >= first)

    def end(self, back):
        """The ids of what was sent."""
        self.stop()
        with contextlib.suppress(StackError):
            wait_until(lambda: self.clients[0].last >= max(self.committed), LAST if back else 0, "")
        return self.rows()


class Message(Flow):
    """One message through Odoo's own API, held between its commit and its NOTIFY, and nothing after it."""

    caller = ""

    def __enter__(self):
        self.clients[0].wait_subscribed()
        for _ in range(2):      # the first one may come without a NOTIFY: who subscribes asks once
            self.sender.send_orm("before")
            if not self.clients[0].next(DEADLINE):
                raise StackError("nothing is received before the fault")
        self.first = self.clients[0].last
        return self

    def send(self):
        self.thread = threading.Thread(target=self.call, daemon=True)
        self.thread.start()

    def call(self):
        try:
            self.sender.send_orm("held")
            self.caller = "an answer"
        except OdooError:
            self.caller = "an error"
        except requests.RequestException as exc:
            self.caller = "no answer" if exc.response is None else "an error"

    def back(self, over):
        return max((over, *(entry.at for entry in self.received()))) if self.received() and self.caller else None

    def end(self, back):
        self.stop()
        rows = self.rows()
        self.committed = commit_clock(self.postgres, self.database, rows)
        return rows

    def took(self, since=0.0):
        return [entry.clock - self.committed[entry.id] for entry in self.received()]


class Side:
    """One setup in this: its path, its Odoo, and what is sent through the fault that is on."""

    def __init__(self, stack, name):
        self.stack, self.name = stack, name
        self.path = Proxy((stack.postgres.host, stack.postgres.port))
        self.via = (self.path.host, self.path.port)
        self.hold = Hold(stack.folder / f"hold-{time.monotonic_ns()}")
        self.poolers = {}
        if SETUPS[name].pooler == "session":
            self.poolers[name] = session_pooler(stack, self.via)
        self.odoo = self.flow = None

    def open(self, kind=Steady):
        """Begin with a bus that works; an Odoo that did not come back is started anew."""
        if self.odoo is None:
            self.odoo = start(self.stack, self.name, via=self.via, poolers=self.poolers, hold=self.hold)
        self.flow = kind(self.odoo, self.stack.pgbouncer, self.stack.postgres, DATABASE)
        self.flow.__enter__()

    def listening(self):
        """The backends of the listening connection: only it goes to the database `postgres` on this path."""
        rows = self.stack.postgres.query("SELECT pid, client_port FROM pg_stat_activity WHERE datname = 'postgres'"
                                         " AND client_port = ANY(%s)", [self.path.ports()])
        if not rows:
            raise StackError(f"{SETUPS[self.name].title}: no connection listens")
        return rows

    def back(self, over):
        return self.flow.back(over)

    def close(self, fault, over):
        """What came of it."""
        back = self.back(over)
        rows, ids = self.flow.end(back), [entry.id for entry in self.flow.received()]
        outcome = Outcome(fault, self.name, back and back - over, self.flow.slowest(), len(rows),
                          len(set(rows) - set(ids)), len(ids) - len(set(ids)), self.flow.caller)
        self.flow.__exit__()
        if not back:
            self.odoo.kill()
            self.odoo = None
        return outcome


# -- the faults; each returns when it is over: time.monotonic() -------------------------------------------------------

def terminated(stack, sides):
    """listening backend terminated"""
    pids = [pid for side in sides for pid, _ in side.listening()]
    event = time.monotonic()
    stack.postgres.query("SELECT pg_terminate_backend(pid) FROM unnest(%s) pid", [pids])
    return event


def restarted(stack, sides):
    """PostgreSQL restarted"""
    stack.postgres.restart("fast")
    return max(time.monotonic(), when_serves(stack.pgbouncer))


def malformed(stack, sides):
    """malformed payload"""
    event = time.monotonic()
    stack.postgres.query("SELECT pg_notify('imbus', 'not JSON')")
    return event


def refused(stack, sides):
    for side in sides:
        side.path.refuse()
    time.sleep(REFUSED)     # the fault is that it lasts
    for side in sides:
        side.path.heal()
    return time.monotonic()


def frozen(stack, sides):
    """listening connection silent, TCP alive, new connections pass"""
    ports = [[port for _, port in side.listening()] for side in sides]
    event = time.monotonic()
    for side, some in zip(sides, ports, strict=True):
        side.path.forget(some)
    return event


@contextlib.contextmanager
def held(sides):
    """A message of each is between its commit and its NOTIFY."""
    with contextlib.ExitStack() as holds:
        for side in sides:
            holds.enter_context(side.hold)
            side.flow.send()
        for side in sides:
            side.hold.wait()
        yield


def pooler_between(stack, sides):
    """pooler restarted between a commit and its NOTIFY"""
    poolers = [stack.pgbouncer, *(pooler for side in sides for pooler in side.poolers.values())]
    with held(sides):
        for pooler in poolers:
            pooler.stop()
    time.sleep(AWAY)        # the fault is that it lasts
    for pooler in poolers:
        pooler.start()
    return max(map(when_serves, poolers))


def postgresql_between(stack, sides):
    """PostgreSQL restarted between a commit and its NOTIFY"""
    with held(sides):
        stack.postgres.stop("fast")
    time.sleep(AWAY)        # the fault is that it lasts
    stack.postgres.start()
    return max(time.monotonic(), when_serves(stack.pgbouncer))


def sender_between(stack, sides):
    """sender killed between its commit and its NOTIFY"""
    with held(sides):
        for side in sides:
            for pid in side.hold.pids():
                os.kill(pid, signal.SIGKILL)
    return time.monotonic()


refused.__doc__ = f"path refused for {REFUSED} s"
BETWEEN = [pooler_between, postgresql_between, sender_between]
# the last one leaves connections behind in a pooler that is in session mode
FAULTS = [terminated, restarted, malformed, refused, *BETWEEN, frozen]


def bad_day(stack, watch=WATCH, faults=FAULTS, names=NAMES):
    """Every fault on every setup: yields an Outcome for each."""
    sides = [Side(stack, name) for name in names]
    try:
        for fault in faults:
            for side in sides:
                side.open(Message if fault in BETWEEN else Steady)
            over = fault(stack, sides)
            # so long, or until all are back and have shown that they stay
            with contextlib.suppress(StackError):
                wait_until(lambda over=over: all(side.back(over) for side in sides),
                           over + watch - time.monotonic(), "")
            for side in sides:
                outcome = side.close(fault.__doc__, over)
                say(f"  {outcome.fault}, {SETUPS[side.name].title}: back after {seconds(outcome.back, watch)} s, "
                    f"longest {longest(outcome, watch)} s, {outcome.lost} of {outcome.sent} lost"
                    + (f", the caller got {outcome.caller}" if outcome.caller else ""))
                yield outcome
    finally:
        for side in sides:
            side.path.close()
            if side.odoo:
                side.odoo.kill()


def seconds(back, watch=WATCH):
    return f">{watch}" if back is None else f"{back:.2f}"


def longest(each, watch=WATCH):
    return f">{watch}" if each.back is None else f"{each.slowest:.2f}"


def write(folder, outcomes, versions, watch=WATCH):
    """bad-day.csv and bad-day.rst."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "bad-day.csv", folder / "bad-day.rst"]
    head = ["fault", "setup", "back after (s)", "longest delivery (s)", "sent", "lost", "duplicated",
            "the caller got"]
    report.write_csv(paths[0], head,
                     [[each.fault, each.setup, seconds(each.back, watch), longest(each, watch), *each[4:]]
                      for each in outcomes])
    names = list(dict.fromkeys(each.setup for each in outcomes))
    faults = list(dict.fromkeys(each.fault for each in outcomes))
    found = {(each.fault, each.setup): each for each in outcomes}
    tables = []
    for label, cell in (
            ("back after (s)", lambda each: seconds(each.back, watch)),
            ("longest from commit to client (s)", lambda each: longest(each, watch)),
            ("lost", lambda each: f"{each.lost} of {each.sent}" if each.lost else "0"),
            ("received twice", lambda each: each.duplicated),
            ("the caller got", lambda each: each.caller)):
        rows = [[fault, *(cell(found[fault, name]) for name in names)] for fault in faults]
        rows = [row for row in rows if any(value != "" for value in row[1:])]
        tables += report.table_or_none(label, list(map(report.title, names)), rows)
    lines = [*report.heading("A bad day", "="), "Made by ``./dev bad-day``; the same as ``bad-day.csv``.", "",
             report.machine(versions), "", NOTE, "", *tables]
    paths[1].write_text("\n".join(lines).rstrip() + "\n")
    return paths


def main(args=None):
    parser = argparse.ArgumentParser(prog="./dev bad-day", description="The same faults on every setup.")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="the folder of the documents (docs)")
    parser.add_argument("--watch", type=int, default=WATCH, help=f"seconds to watch each fault ({WATCH})")
    parser.add_argument("--only", nargs="+", choices=[fault.__name__ for fault in FAULTS], help="not all of the faults")
    options = parser.parse_args(args)
    return exit_status("bad-day", lambda: run(options))


def run(options):
    faults = [fault for fault in FAULTS if not options.only or fault.__name__ in options.only]
    with Stack(groups=("odoo",)) as stack:
        stack.database(DATABASE)
        outcomes = list(bad_day(stack, options.watch, faults))
        paths = write(options.output, outcomes, versions(stack), options.watch)
    say("written: " + ", ".join(map(str, paths)))
    bad = [each for each in outcomes if each.setup == "addon"
           and (each.back is None or each.lost or each.duplicated or each.caller == "an error")]
    for each in bad:
        print(f"./dev bad-day: {each}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
