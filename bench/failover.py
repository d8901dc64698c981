"""./dev failover: the primary moves, with real Patroni, etcd, HAProxy and PgBouncer, and what each setup made of it.

Contract: all setups live on one cluster, so that a fault is the same for all at the same moment. Each has an Odoo, 20
websockets, and a caller that sends a message through Odoo's API four times a second. Counted are the messages that are
in the table of the server that is the primary at the end. Exits 0 when with this addon none of these was lost, no
caller got an error after a commit, and all were instant again.
"""
import argparse
import contextlib
import itertools
import os
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import requests

from stack import Stack, StackError, say
from stack.clients.client import OdooError, Sender, commit_clock, compact
from stack.clients.state import INSTANT
from stack.command import exit_status
from stack.faults.network import Island
from stack.process import wait_until
from stack.servers.patroni import Cluster

from . import report
from .clients import Swarm, login
from .setups import DATABASE, SETUPS, start, versions

CLIENTS = 20
EVERY = 0.25        # seconds between two messages
WATCH = 150         # seconds after a fault in which all have to be instant again
QUIET = 1.0         # seconds without a commit that a busy machine may take
STAYS = 3           # seconds of messages, all of them instant; so long may the last ones be on their way
NEVER = float("inf")
BUSY = 0.5          # the load average from which on a machine does something else as well

TITLES = {
    "addon": "this addon, PgBouncer, HAProxy",
    "hosts": "this addon, PgBouncer, all hosts in one setting",
    "published": "OCA's addon, PgBouncer, HAProxy",
    "direct": "Odoo straight to HAProxy",
}

# without: the longest time between two commits; first, instant: seconds from the last commit before that. None: never
Outcome = namedtuple("Outcome", "fault setup without first instant sent lost errors")

NOTE = f"""Two PostgreSQL servers with Patroni, configured as `failover.rst <failover.rst>`__ has it. Each setup has an
Odoo with two HTTP workers, {CLIENTS} websockets, and a caller that sends a message through Odoo's API every {EVERY} s;
all setups live on the same servers, and a fault comes to all at the same moment.

Without database: the longest time between two commits of the caller's, which is Patroni's and the pooler's doing. What
comes after it counts from the same moment, the last commit before: first message again, until every websocket had one
that was sent after it; instant again, until every message takes less than {INSTANT:.0f} s from its commit to every
websocket. Where there is no such time they count from the fault itself.

Lost, of the messages in the table of the server that is the primary at the end: not at every websocket when all setups
were instant again, or {WATCH} s after the fault. Errors after a commit: the caller was told that it failed, and the
message is in that table."""


class Side:
    """One setup: its Odoo, its websockets, and its caller."""

    def __init__(self, stack, cluster, name):
        self.stack, self.cluster, self.name = stack, cluster, name
        self.odoo = None

    def open(self):
        """Begin with a bus that works; an Odoo that did not come back is started anew."""
        if self.odoo is None:
            self.odoo = self.start()
        last = self.cluster.primary().query("SELECT coalesce(max(id), 0) FROM bus_bus", dbname=DATABASE)[0][0]
        self.sender = Sender(login(self.odoo, DATABASE), None, f"failover-{time.monotonic_ns()}")
        self.swarm = Swarm(self.odoo, DATABASE, CLIENTS, lambda _: [self.sender.channel], last)
        self.swarm.__enter__()
        self.numbers, self.errors, self.ending = itertools.count(1), {}, threading.Event()
        self.thread = threading.Thread(target=self.send, name="caller", daemon=True)
        self.thread.start()
        # who subscribes asks once by itself: what follows was pushed
        wait_until(lambda: all(len(client.received) > 8 for client in self.swarm.clients), WATCH,
                   lambda: f"{TITLES[self.name]}: nothing arrives; {list(self.errors.items())[-1:]}")

    def start(self):
        via = (self.cluster.proxy.host, self.cluster.proxy.port)
        if self.name != "hosts":
            return start(self.stack, self.name, workers=2, via=via)
        hosts, ports = (",".join(str(getattr(member, part)) for member in self.cluster.members)
                        for part in ("host", "port"))
        return start(self.stack, "addon", workers=2, options={"imdispatcher_db_host": hosts,
                                                              "imdispatcher_db_port": ports})

    def send(self):
        while not self.ending.wait(EVERY):
            number = next(self.numbers)
            try:
                self.sender.send_orm(number)
            except (OdooError, requests.RequestException) as exc:
                self.errors[number] = exc

    def rows(self, primary):
        """{id: (the caller's number, time.monotonic() of the commit)} of the table."""
        found = primary.query("SELECT id, message::json ->> 'payload' FROM bus_bus WHERE channel = %s",
                              [compact(self.sender.wire_channel)], dbname=DATABASE)
        clocks, offset = commit_clock(primary, DATABASE, [row[0] for row in found]), time.time() - time.monotonic()
        return {row[0]: (int(row[1]), clocks[row[0]] - offset) for row in found}

    def outcome(self, fault, event):
        primary = self.cluster.primary()
        if not primary:
            raise StackError("there is no primary")
        rows, now = self.rows(primary), time.monotonic()
        # a server that did not get the last ones of another gives their ids again: those came before the commit
        arrived = [{number: at for number, at in reversed(list(client.received))
                    if number in rows and at > rows[number][1] - EVERY} for client in self.swarm.clients]
        without, since, again = gap([*sorted(at for _, at in rows.values()), now], event)
        first = max(min((at for number, at in each.items() if rows[number][1] >= again), default=NEVER)
                    for each in arrived) - since
        # what was sent last may still be on its way
        commits = sorted((at, number) for number, (_, at) in rows.items() if at < now - STAYS)
        took = {number: max(each.get(number, NEVER) for each in arrived) - at for at, number in commits}
        late = max((at for at, number in commits if took[number] >= INSTANT), default=0.0)
        instant = next((at + took[number] for at, number in commits if at >= again and at > late), NEVER)
        stays = instant < NEVER and commits[-1][0] - instant > STAYS
        return Outcome(fault, self.name, without, first if first < NEVER else None, instant - since if stays else None,
                       len(commits), sum(value == NEVER for value in took.values()),
                       sum(number in self.errors for number, _ in rows.values()))

    def close(self):
        self.ending.set()
        self.thread.join(60)
        self.swarm.__exit__()

    def end(self):
        if self.odoo:
            self.odoo.kill()
            self.odoo = None


def gap(commits, event):
    """(seconds, begin, end) of the longest time without a commit since the event; the event itself where all was well.

    :param commits: their times, in order, and now
    """
    around = [max((at for at in commits if at <= event), default=event), *(at for at in commits if at > event)]
    longest = max(itertools.pairwise(around), key=lambda pair: pair[1] - pair[0], default=(event, event))
    return (longest[1] - longest[0], *longest) if longest[1] - longest[0] > QUIET else (0.0, event, event)


# -- the faults --------------------------------------------------------------------------------------------------------

class Bed:
    """The cluster and who of it is away; a fault returns when it began: time.monotonic()."""

    def __init__(self, stack, cluster):
        self.stack, self.cluster = stack, cluster
        self.away = None

    def switched(self):
        """planned switchover"""
        event = time.monotonic()
        self.cluster.switchover()
        return event

    def killed(self):
        """primary killed (kill -9, Patroni too)"""
        return self.take_away(lambda member: member.kill())

    def started(self):
        """the killed one is started: a standby"""
        return self.bring_back(lambda member: member.start())

    def frozen(self):
        """primary frozen (SIGSTOP, Patroni too)"""
        return self.take_away(lambda member: member.freeze())

    def reset(self):
        """the frozen one is reset, as its watchdog does: a standby"""
        # one that merely went on took the lead back, and with it what the other had committed: see failover.rst
        return self.bring_back(lambda member: (member.kill(), member.start()))

    def cut(self):
        """primary cut off from etcd, HAProxy and the other"""
        return self.take_away(lambda _: self.cluster.island.drop())

    def healed(self):
        """the one that was cut off is connected: a standby"""
        return self.bring_back(lambda _: self.cluster.island.heal())

    def repointed(self):
        """PgBouncer paused, primary switched, PgBouncer pointed to it and resumed"""
        pooler, target = self.stack.pgbouncer, self.cluster.other(self.cluster.primary())
        event = time.monotonic()
        pooler.command("PAUSE")
        self.cluster.switchover()
        pooler.target = (target.host, target.port)
        pooler.reload()
        pooler.command("RESUME")
        return event

    def take_away(self, how):
        self.away = self.cluster.primary()
        event = time.monotonic()
        how(self.away)
        return event

    def bring_back(self, how):
        event = time.monotonic()
        how(self.away)
        self.away = None
        return event

    def prepare(self, fault):
        """What has to be so before the messages flow."""
        if fault == "cut" and self.cluster.primary().island is None:
            self.cluster.switchover()
        self.settle()
        self.cluster.point(self.cluster.primary() if fault == "repointed" else self.cluster.proxy)

    def settle(self):
        """Wait until the cluster is whole, or the other one the primary while one is away."""
        if not self.away:
            self.cluster.wait_whole()
            return
        other = self.cluster.other(self.away)
        wait_until(lambda: other.answers("primary"), WATCH, lambda: f"no failover: {other.last_lines()}")


# in this order: who was taken away comes back with the next one
FAULTS = ["switched", "killed", "started", "frozen", "reset", "cut", "healed", "repointed"]
RETURNS = {"started": "killed", "reset": "frozen", "healed": "cut"}


def chosen(only):
    """The faults to run, with those that the chosen ones need: (names, why some are left out, or None)."""
    names = [name for name in FAULTS if not only or name in only
             or any(RETURNS.get(other) == name or RETURNS.get(name) == other for other in only)]
    why = Island.why_not() if "cut" in names else None
    return [name for name in names if not (why and name in ("cut", "healed"))], why


def failover(stack, cluster, faults, names=TITLES, watch=WATCH):
    """Every fault on every setup: yields an Outcome for each."""
    bed, sides = Bed(stack, cluster), [Side(stack, cluster, name) for name in names]
    try:
        for fault in faults:
            yield from strike(bed, sides, fault, watch)
    finally:
        for side in sides:
            side.end()


def strike(bed, sides, fault, watch):
    title = getattr(Bed, fault).__doc__
    bed.prepare(fault)
    with contextlib.ExitStack() as exits:
        for side in sides:
            side.open()
            exits.callback(side.close)
        event = getattr(bed, fault)()
        bed.settle()
        while True:
            time.sleep(1)       # each look asks the table
            outcomes = [side.outcome(title, event) for side in sides]
            if all(each.instant is not None for each in outcomes) or time.monotonic() > event + watch:
                break
    for side, each in zip(sides, outcomes, strict=True):
        say(f"  {title}, {TITLES[each.setup]}: {each.without:.1f} s without database, first after "
            f"{seconds(each.first)}, instant after {seconds(each.instant)} s, {each.lost} of {each.sent} lost, "
            f"{each.errors} errors after a commit, {len(side.errors)} errors")
        if each.instant is None:
            side.end()
    # nothing of the pooler was paused for a setup that has none
    yield from (each for side, each in zip(sides, outcomes, strict=True)
                if fault != "repointed" or side.name == "hosts" or SETUPS[side.name].pooler)


def seconds(value):
    return f">{WATCH}" if value is None else f"{value:.1f}"


def write(folder, outcomes, versions, load=0.0, left_out=None):
    """failover.csv and failover-results.rst. `load`: of the machine when it began."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "failover.csv", folder / "failover-results.rst"]
    report.write_csv(paths[0], ["fault", "setup", "without database (s)", "first message again (s)",
                                "instant again (s)", "sent", "lost", "errors after a commit"],
                     [[each.fault, each.setup, seconds(each.without), seconds(each.first), seconds(each.instant),
                       *each[5:]] for each in outcomes])
    found = {(each.fault, each.setup): each for each in outcomes}
    names = list(dict.fromkeys(each.setup for each in outcomes))
    tables = []
    for label, cell in (
            ("without database (s)", lambda each: seconds(each.without)),
            ("first message again after (s)", lambda each: seconds(each.first)),
            ("instant again after (s)", lambda each: seconds(each.instant)),
            ("lost, of what the surviving server has", lambda each: f"{each.lost} of {each.sent}"),
            ("callers' errors after a commit", lambda each: each.errors)):
        rows = [[fault, *(cell(found[fault, name]) if (fault, name) in found else "–" for name in names)]
                for fault in dict.fromkeys(each.fault for each in outcomes)]
        if label.startswith("instant") and all(each.instant == each.first for each in outcomes):
            tables += ["Instant again: with the first message, after every fault and for everyone.", ""]
        else:
            tables += report.table_or_none(label, [TITLES[name] for name in names], rows)
    lines = [*report.heading("A primary that moves: what was measured", "="),
             "Made by ``./dev failover``; the same as ``failover.csv``.", "", report.machine(versions), "",
             *([f"Other work went on beside it: the load average was {load:.1f} when it began.", ""] if load > BUSY
               else []), NOTE, "",
             *([f"Not run here, the primary that is cut off: {left_out}.", ""] if left_out else []), *tables]
    paths[1].write_text("\n".join(lines).rstrip() + "\n")
    return paths


def main(args=None):
    parser = argparse.ArgumentParser(prog="./dev failover", description="The primary moves, with real Patroni.")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="the folder of the documents (docs)")
    parser.add_argument("--only", nargs="+", choices=FAULTS, help="not all of the faults")
    options = parser.parse_args(args)
    return exit_status("failover", lambda: run(options))


def run(options):
    (faults, left_out), load = chosen(options.only), os.getloadavg()[0]
    if left_out:
        say(f"no primary is cut off: {left_out}")
    with Stack(groups=("odoo",)) as stack:
        stack.database(DATABASE)
        found = versions(stack)
        with Cluster(stack) as cluster:
            found.update(cluster.versions())
            outcomes = list(failover(stack, cluster, faults))
        bad = [each for each in outcomes if each.setup in ("addon", "hosts")
               and (each.instant is None or each.lost or each.errors)]
        if bad:
            stack.keep_logs()
    say("written: " + ", ".join(map(str, write(options.output, outcomes, found, load, left_out))))
    for each in bad:
        print(f"./dev failover: {each}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
