"""./dev matrix: other poolers on the pooled path, other servers behind it, and whether the bus works and heals there.

Contract: a cell is one pooler and one server, both as Debian has them in one of its releases. In each Odoo installs
`bus` through the pooler, and then does CHECKS in order, with notifications four times a second. What cannot be is a
finding: its cell says so, with the error. Exits 0 when PgBouncer did everything with every server, and no cell lost a
notification.
"""
import argparse
import csv
import dataclasses
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import psycopg2
import requests

from stack import Machine, Stack, StackError, say
from stack.clients.client import OdooError, Sender
from stack.clients.flow import Flow, when_serves
from stack.clients.listeners import direct, wait_listening
from stack.command import exit_status
from stack.download.releases import released
from stack.faults.network import Proxy
from stack.process import DEADLINE, wait_until
from stack.servers.pgbouncer import PgBouncer
from stack.servers.poolers import Odyssey, Pgagroal, Pgpool

from . import report
from .setups import DATABASE

ERRORS = (AssertionError, StackError, OdooError, psycopg2.Error, requests.RequestException)
LONGEST = 300           # seconds for an installation
BACK = 30               # seconds for a notification after a fault

# a pooler: the release and the package it comes from, and its class where it is no PgBouncer
Kind = namedtuple("Kind", "release package pooler", defaults=[None])
POOLERS = {
    "pgbouncer-1.15": Kind("bullseye", "pgbouncer"),
    "pgbouncer-1.18": Kind("bookworm", "pgbouncer"),
    "pgbouncer-1.24": Kind("trixie", "pgbouncer"),
    "pgbouncer-1.26": Kind("unstable", "pgbouncer"),
    "odyssey": Kind("unstable", "odyssey", Odyssey),
    "pgagroal": Kind("unstable", "pgagroal", Pgagroal),
    "pgpool": Kind("bookworm", "pgpool2", Pgpool),
}
SERVERS = {13: "bullseye", 15: "bookworm", 17: "trixie", 18: "unstable"}
OLDEST, RELEASED, NEWEST = ("pgbouncer-1.15", 13), ("pgbouncer-1.24", 17), ("pgbouncer-1.26", 18)
# not the full product: every pooler with one server, every server with one pooler, and the oldest and the newest pair
CELLS = [*((name, 15) for name in POOLERS), *(("pgbouncer-1.18", server) for server in (13, 17, 18)), OLDEST, NEWEST]

# made: {check: what came of it}; failed: {check: why}; versions: of the pooler and of the server, as they say; load:
# the load average when it began
Cell = namedtuple("Cell", "pooler server date load versions made failed")


def programs(machine, pooler, server):
    """(this machine with the programs of a cell, the folder of the pooler's package)"""
    kind, release = POOLERS[pooler], SERVERS[server]
    package = released(machine.cache, kind.release, kind.package)
    postgres = released(machine.cache, release, f"postgresql-{server}")
    own = {} if kind.pooler else {"pgbouncer": package / PgBouncer.program}
    return dataclasses.replace(machine, pg_bin=postgres / f"usr/lib/postgresql/{server}/bin", **own), package


class Bed:
    """One cell while it runs."""

    def __init__(self, stack, pooler):
        self.stack, self.pooler = stack, pooler
        self.postgres = stack.postgres
        self.path = Proxy((self.postgres.host, self.postgres.port))
        self.odoo = self.flow = None

    # -- the checks, in this order: each returns what came of it ------------------------------------------------------

    def installed(self):
        """Odoo installs bus"""
        begun = time.monotonic()
        self.made("install").create_database(DATABASE, timeout=LONGEST)
        return f"{time.monotonic() - begun:.0f} s"

    def copied(self):
        """a copy of a database that Odoo made"""
        self.stack.database(DATABASE)
        return "yes"

    def delivered(self):
        """notification"""
        self.odoo = self.made("odoo").start(DATABASE, workers=1)
        self.flow = Flow(self.odoo, self.pooler, self.postgres, DATABASE).__enter__()
        wait_listening(self.postgres, self.odoo, "bus")
        since = time.monotonic()
        self.flow.check_pushed(since)
        return f"{statistics.median(self.flow.took(since)) * 1000:.0f} ms"

    def terminated(self):
        """listener terminated"""
        event = time.monotonic()
        self.postgres.query("SELECT pg_terminate_backend(%s)", self.listener())
        return self.back(event)

    def restarted(self):
        """PostgreSQL restarted"""
        self.postgres.restart()
        return self.back(max(time.monotonic(), when_serves(self.pooler, ("postgres", DATABASE))))

    def silent(self):
        """listener's path silent"""
        pid, = self.listener()
        port, = self.postgres.query("SELECT client_port FROM pg_stat_activity WHERE pid = %s", [pid])[0]
        event = time.monotonic()
        self.path.forget({port})
        wait_until(lambda: [row for row in direct(self.postgres, self.odoo, "bus") if row[0] != pid], BACK,
                   "the silent path is not noticed")
        # PostgreSQL was told nothing, either
        self.postgres.query("SELECT pg_terminate_backend(%s)", [pid])
        return self.back(event)

    def pooler_restarted(self):
        """pooler restarted"""
        self.pooler.restart()
        return self.back(when_serves(self.pooler, ("postgres", DATABASE)))

    def api(self):
        """message by Odoo's API"""
        sender = Sender(self.flow.session, self.pooler, f"api-{time.monotonic_ns()}")
        with self.flow.session.subscribe([sender.channel], last=self.flow.clients[0].last) as client:
            client.wait_subscribed()
            for _ in range(2):      # the first one may come without a NOTIFY: who subscribes asks once
                begun = time.monotonic()
                sender.send_orm("by the API")
                if not client.next(BACK):
                    raise StackError("it does not arrive")
            return f"{(client.received[-1].at - begun) * 1000:.0f} ms"

    def lost(self):
        """lost"""
        rows = self.flow.check()
        return f"0 of {rows}"

    def doctor(self):
        """the doctor names"""
        odoo = self.made("doctor")
        done = subprocess.run([*odoo.source.command, "bus_doctor", "--json"], cwd=odoo.folder, capture_output=True,
                              text=True, env=odoo.env({"ODOO_RC": str(odoo.config())}), timeout=DEADLINE)
        found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        return found["pooler"]["text"].partition(":")[0]

    # -- what they share ----------------------------------------------------------------------------------------------

    def made(self, name):
        """An Odoo behind the pooler, not started; its listeners go past it, on a path that can break."""
        odoo = self.stack.odoo(direct=False, name=name)
        odoo.db_host, odoo.db_port = self.pooler.host, self.pooler.port
        odoo.direct_host, odoo.direct_port = self.path.host, self.path.port
        return odoo

    def listener(self):
        return wait_listening(self.postgres, self.odoo, "bus", timeout=BACK)

    def back(self, event):
        """Seconds until something that was sent after `event` came; everything comes at once from then on."""
        took = self.flow.back_after(event, BACK)
        self.listener()
        self.flow.check_pushed()
        return f"{took:.1f} s"

    def end(self):
        if self.flow:
            self.flow.__exit__()
        self.path.close()


CHECKS = [Bed.installed, Bed.delivered, Bed.terminated, Bed.restarted, Bed.silent, Bed.pooler_restarted, Bed.api,
          Bed.lost, Bed.doctor]
# without these nothing else can be, but for the doctor
NEEDED = {Bed.installed, Bed.copied, Bed.delivered}


def run_cell(machine, name, server, checks=CHECKS):
    """A Cell."""
    kind = POOLERS[name]
    machine, package = programs(machine, name, server)
    cell = Cell(name, server, str(datetime.date.today()), f"{os.getloadavg()[0]:.1f}", [], {}, {})
    with Stack(machine=machine) as stack:
        cell.versions.append(said(package / (kind.pooler or PgBouncer).program))
        cell.versions.append(stack.postgres.query("SHOW server_version")[0][0].split()[0])
        pooler = stack.pgbouncer
        if kind.pooler:
            pooler = stack.add(kind.pooler(machine, stack.folder / name, stack.postgres, package, DATABASE))
            if pooler.prefilled:
                stack.postgres.query(f"CREATE DATABASE {DATABASE} TEMPLATE template0 OWNER odoo")
            pooler.start()
        bed = Bed(stack, pooler)
        try:
            for check in checks:
                title = check.__doc__
                if check is not Bed.doctor and any(needed.__doc__ in cell.failed for needed in NEEDED):
                    continue
                try:
                    cell.made[title] = check(bed)
                    say(f"  {title}: {cell.made[title]}")
                except ERRORS as exc:
                    cell.failed[title] = shown(exc)
                    say(f"  {title}: {cell.failed[title]}")
        finally:
            bed.end()
    return cell


def said(program):
    """The number of the version that a program gives."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, env={**os.environ, "HOME": "/"})
    return re.search(r"\d+\.\d[\d.]*", done.stdout + done.stderr)[0]


def shown(exc):
    """An error in one line, without what differs from run to run."""
    text = " ".join(str(exc).split()) or type(exc).__name__
    return text if len(text) < 300 else text[:297] + "…"


# -- the page ----------------------------------------------------------------------------------------------------------

NOTE = """Each line is one cell: a pooler and a server, with the programs of Debian's releases. Odoo {odoo} runs
behind the pooler with one HTTP worker, its listeners connect to PostgreSQL directly. PgBouncer has the
``pgbouncer.ini`` of this repository, the others what is nearest to it; pgpool-II has no transaction pooling and pools
sessions.

It is not every pooler with every server: every pooler runs with PostgreSQL 15, every server with PgBouncer 1.18, and
beside these the oldest and the newest of both together.

* Odoo installs ``bus``: base, web and bus in a new database, through the pooler.
* notification: from its commit, past Odoo, to a websocket; the median.
* The faults: seconds until a websocket had a notification that was sent after the fault, or after the pooler served
  again. What followed came at once, half of it within half a second, or the cell fails. The silent path is a connection
  that a firewall has forgotten.
* message by Odoo's API: from the call to the websocket.
* lost: of all notifications that were sent through these faults.
* load average: of the machine when the cell, or the run that it belongs to, began. Above 1 other work went on beside
  it, and times are longer."""

# what an error's own text does not say
REASONS = {
    ("pgagroal", Bed.delivered.__doc__): """It pools by transactions, and there is more than one client. Its log has
   ``Failure during obtaining connection`` and ``pgagroal_management_transfer_connection: get_pid connect = -1``: a
   server connection does not reach the process of the client that is to use it next, who is disconnected after
   ``blocking_timeout``, 30 s. Besides, it pools only databases that exist when it starts, and aborts (``buffer overflow
   detected``) where PostgreSQL's port has five digits; here it was given both, an empty database and a short port."""
}


HEAD = ["pooler", "server", "date", "load average", "pooler's version", "PostgreSQL's version", "check", "came of it",
        "error"]


def write(folder, cells, odoo):
    """reach.csv and reach.rst, of these Cells and of those that earlier runs wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "reach.csv", folder / "reach.rst"]
    found = {(cell.pooler, cell.server): cell for cell in [*read(paths[0]), *cells]}
    cells = [found[key] for key in CELLS if key in found]
    report.write_csv(paths[0], HEAD, [
        [*cell[:4], *cell.versions, check, cell.made.get(check, ""), cell.failed.get(check, "")]
        for cell in cells for check in [*cell.made, *cell.failed]])
    titles = [check.__doc__ for check in CHECKS]
    failures, rows = [], []
    for cell in cells:
        kind = (POOLERS[cell.pooler].pooler or PgBouncer).title
        row = ["{} {}, PostgreSQL {}".format(kind, *cell.versions)]
        for title in titles:
            if title in cell.failed:
                failures.append((row[0], title, cell.failed[title], REASONS.get((cell.pooler, title))))
                row.append(f"**no**, see {len(failures)} below")
            else:
                row.append(cell.made.get(title, "–"))
        rows.append([*row, f"{cell.date}, {cell.load}"])
    machine = report.machine({"Odoo": odoo, "Python": sys.version.split()[0]})
    lines = [*report.heading("Poolers and servers: what was run", "="),
             "Which poolers and servers does it work with?", "",
             "Made by ``./dev matrix``; the same as ``reach.csv``.", "", machine, "", NOTE.format(odoo=odoo), "",
             *report.csv_table(["cell", *titles, "date, load average"], rows)]
    if failures:
        lines += report.heading("What cannot be", "-")
        for number, (cell, title, error, reason) in enumerate(failures, 1):
            lines += [f"{number}. {cell}, {title}: ``{error}``", *([f"   {reason}"] if reason else []), ""]
    paths[1].write_text("\n".join(lines).rstrip() + "\n")
    return paths


def read(path):
    """The Cells of a reach.csv, if it is there."""
    cells = {}
    if path.exists():
        with open(path, newline="") as file:
            for row in csv.reader(file):
                if row != HEAD:
                    pooler, server, date, load, *versions, check, made, error = row
                    cell = cells.setdefault((pooler, server), Cell(pooler, int(server), date, load, versions, {}, {}))
                    into, what = (cell.failed, error) if error else (cell.made, made)
                    into[check] = what
    return cells.values()


def main(args=None):
    parser = argparse.ArgumentParser(prog="./dev matrix", description="Other poolers and servers.")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="the folder of the page (docs)")
    parser.add_argument("--only", nargs="+", metavar="CELL", choices=[f"{name}/{server}" for name, server in CELLS],
                        help="not all of the cells: pgbouncer-1.26/18 and the like")
    options = parser.parse_args(args)
    return exit_status("matrix", lambda: run(options))


def run(options):
    cells, machine = [], Machine.find()
    for name, server in CELLS:
        if not options.only or f"{name}/{server}" in options.only:
            say(f"{name}, PostgreSQL {server}")
            cells.append(run_cell(machine, name, server))
            # after each: a run that is ended has made a page
            paths = write(options.output, cells, ".".join(map(str, machine.odoo.series)))
    say("written: " + ", ".join(map(str, paths)))
    bad = [cell for cell in cells
           if cell.failed and (not POOLERS[cell.pooler].pooler or Bed.lost.__doc__ in cell.failed)]
    for cell in bad:
        print(f"./dev matrix: {cell}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
