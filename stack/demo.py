"""./dev demo: the main job, to be seen. Odoo behind PgBouncer in transaction mode, with the addon and without it.

Contract: exits 0 when every notification arrived in time with the addon and none without it, 1 when not, 2 when the
stack could not be set up, with one line that says what to do.
"""
import argparse
import secrets
import signal
import sys
import time

from . import ADDON, Stack, say
from .clients.client import Sender, Session, commit_clock
from .command import exit_status
from .download.programs import prometheus
from .machine import REPO
from .process import free_port
from .series import Series
from .servers.gateway import Gateway
from .servers.prometheus import DASHBOARD, Prometheus

DATABASE = "demo"
COUNT = 5
PATIENCE = 3        # seconds to wait for a notification that does not come
IN_TIME = 0.1       # seconds from commit to client that the demo promises

PICTURE = """
What this shows, on a real Odoo, PgBouncer in transaction mode and PostgreSQL: first with the addon, then without.

                                            all queries, NOTIFY
    browser <--- notifications --- Odoo ---------------------------> PgBouncer ---> PostgreSQL
                                     ^                                                   |
                                     '------ LISTEN: directly, which is the addon -------'

  with the addon:     every notification reaches the client within milliseconds of its commit
  without the addon:  LISTEN goes through PgBouncer too, which loses it: no notification arrives
"""
NEXT = """
What next
  ./dev demo --keep        the same, left running: open it in a browser
  ./dev demo --monitoring  the same with a Prometheus; docs/monitoring.rst has the alert rules and a dashboard
  ./dev bad-day            what faults do, with this addon and without it, side by side
  README.rst               "Install": the lines of odoo.conf that your own Odoo needs
  docs/doctor.rst          "odoo bus_doctor" checks them, before you restart Odoo and after
"""

# Whose last statement was a LISTEN, or who says that it listens. Not the one who asks.
LISTENERS = """
SELECT pid, application_name, state, query FROM pg_stat_activity
WHERE pid <> pg_backend_pid() AND (query ~* '^\\s*listen' OR application_name LIKE %s) ORDER BY pid
"""
CONNECTIONS = """
SELECT count(*) FILTER (WHERE client_port = ANY(%s)), count(*) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


def main(args=None):
    parser = argparse.ArgumentParser(prog="./dev demo", description="See a notification go past the pooler.")
    parser.add_argument("--keep", action="store_true", help="leave it running and print the address to open")
    parser.add_argument("--monitoring", action="store_true", help="--keep, with a Prometheus that reads its metrics")
    options = parser.parse_args(args)
    return exit_status("demo", lambda: demo(options.keep or options.monitoring, options.monitoring))


def demo(keep, monitoring):
    started = time.monotonic()
    with Stack() as stack:
        monitor = Monitor(stack) if monitoring else None
        say(PICTURE)
        mode = {row["key"]: row["value"] for row in stack.pgbouncer.show("CONFIG")}["pool_mode"]
        say(f"PostgreSQL on port {stack.postgres.port}, PgBouncer in {mode} mode on port {stack.pgbouncer.port}")
        stack.database(DATABASE)
        say(f"database {DATABASE} is ready ({time.monotonic() - started:.0f} s)")
        ok = True
        without = Series(stack.machine.odoo.series[0]).server_wide
        if (REPO / ADDON / "__manifest__.py").exists():
            title(f"With the addon: server_wide_modules = {without},{ADDON}")
            odoo, delays = watch(stack, f"{without},{ADDON}", monitor)
            ok = all(delay is not None and delay < IN_TIME for delay in delays)
            say("  every notification arrived in time" if ok else
                f"  FAILED: not every notification arrived within {IN_TIME * 1000:.0f} ms")
            if keep:
                return hold(odoo, monitor)
            odoo.stop()
        else:
            say(f"{ADDON} is not here yet: only the half without it is shown")
        title(f"Without the addon: server_wide_modules = {without}, all else the same")
        odoo, delays = watch(stack, without)
        lost = all(delay is None for delay in delays)
        say(f"  nothing arrived in {2 * PATIENCE} s: the pooler gave the listening connection away" if lost else
            "  NOT AS EXPECTED: a notification arrived without the addon")
        if keep:
            return hold(odoo)
        odoo.stop()
        if not (ok and lost):
            stack.keep_logs()
            return 1
        say(NEXT)
        return 0


def title(text):
    say(f"\n{text}")


class Monitor:
    """A Prometheus, started at the end, and what Odoo is started with so that there are metrics."""

    def __init__(self, stack):
        command, library = prometheus(stack.machine.cache)
        self.port = free_port()
        self.prometheus = stack.add(Prometheus(command, stack.folder / "prometheus", self.port))
        self.options = {"imdispatcher_metrics_port": self.port}
        self.env = {"PYTHONPATH": f"{stack.machine.odoo.env['PYTHONPATH']}:{library}"}


def watch(stack, load, monitor=None):
    """Start Odoo with these modules, send, and print which way all went: (odoo, seconds or None for each)."""
    more = {"options": monitor.options, "env": monitor.env} if monitor else {}
    odoo = stack.odoo().start(DATABASE, workers=2, load=load, **more)
    say(f"  Odoo {'.'.join(map(str, odoo.series))}: HTTP workers on {odoo.url}, websockets on {odoo.evented_url}")
    session = Session(odoo, DATABASE)
    # A channel of its own: a client that subscribes is served what was sent on it in the last 50 s, pushed or not.
    channel = f"bus_alt_demo_{secrets.token_hex(8)}"
    sender = Sender(session, stack.pgbouncer, channel)
    with session.subscribe([channel]) as client:
        client.wait_subscribed()
        # The first one makes sure that what follows was pushed: a client that has just subscribed asks by itself once.
        sender.send_orm({"number": 0})
        awake = client.next(PATIENCE) is not None
        for number in range(1, COUNT + 1):
            sender.send_orm({"number": number})
            client.next(PATIENCE if awake else PATIENCE / COUNT)
        arrived = {entry.payload["number"]: entry for entry in list(client.received)}
        show_ways(stack)
    sender.close()
    committed = commit_clock(stack.postgres, DATABASE, [entry.id for entry in arrived.values()])
    delays = []
    for number in range(1, COUNT + 1):
        entry = arrived.get(number)
        delays.append(entry and max(entry.clock - committed[entry.id], 0))
    say("  from commit to client: " + ", ".join("lost" if delay is None else f"{delay * 1000:.1f} ms"
                                               for delay in delays))
    return odoo, delays


def show_ways(stack):
    pooled = [row["local_port"] for row in stack.pgbouncer.show("SERVERS")]
    listeners = stack.postgres.query(LISTENERS, [f"%{ADDON}%"])
    direct = [row for row in listeners if not is_pooled(stack, row[0], pooled)]
    say(f"  listening directly ({len(direct)}):")
    for pid, name, state, query in direct:
        say(f"    backend {pid}  {name or '(no name)'}  {state}  {query}")
    say("  what the pooler carries (SHOW POOLS):")
    for row in stack.pgbouncer.show("POOLS"):
        if row["database"] in (DATABASE, "postgres"):
            clients = int(row["cl_active"]) + int(row["cl_waiting"])
            servers = sum(int(row[name]) for name in ("sv_active", "sv_idle", "sv_used"))
            say(f"    {row['database']}: {clients} clients on {servers} server connections, {row['pool_mode']} mode")
    through, everyone = stack.postgres.query(CONNECTIONS, [pooled])[0]
    say(f"  PostgreSQL holds {everyone} server connections: {through} of the pooler, {everyone - through} direct")


def is_pooled(stack, pid, pooled):
    row = stack.postgres.query("SELECT client_port FROM pg_stat_activity WHERE pid = %s", [pid])
    return bool(row) and row[0][0] in pooled


def hold(odoo, monitor=None):
    with Gateway(odoo) as gateway:
        title(f"Open {gateway.url} in a browser (login admin, password admin). Ctrl-C ends it all.")
        say(f"  log: {odoo.log}")
        if monitor:
            url = monitor.prometheus.start().url
            say(f"  the metrics: http://127.0.0.1:{monitor.port}/metrics")
            say(f"  Prometheus:  {url}/classic/graph?g0.expr=bus_alt_connection_connected&g0.tab=0&g0.range_input=5m")
            say(f"  the alerts:  {url}/classic/alerts")
            say(f"  the dashboard: in a Grafana of your own add {url} as a data source, then import {DASHBOARD}")
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
