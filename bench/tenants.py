"""Many databases with one Odoo: what its listeners cost at rest, when all connections are lost, and while it polls."""
import json
import threading
import time

import psycopg2.extras
import requests

from stack.clients.listeners import direct, wait_listening
from stack.clients.state import wait_failing, wait_healthy
from stack.faults.network import Proxy
from stack.process import children, wait_until
from stack.servers.postgres import ODOO_USER

from .clients import Client, Swarm
from .report import Result
from .setups import DATABASE, alive, cpu, start

NAME = "addon"
SEED = "fleet_seed"
PATIENCE = 180
COUNTED = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "all",
           "pg_stat_statements.max": 20000, "max_connections": 1200}
# what Odoo's cron asks a database for first, and what a look at the bus reads
JOBS, LOOKS = "%ir_module_module%WHERE name=%", "%txid_snapshot_xmin%"


def run(stack, measure, quick):
    """`stack`: one that is thrown away, since to drop so many databases takes longer than to make them."""
    count, seconds = (4, 6) if quick else (200, 60)     # longer than from one poll to the next
    names = [f"fleet{number:03}" for number in range(count)]
    make(stack, names)
    proxy = Proxy((stack.postgres.host, stack.postgres.port))
    # Odoo keeps as many databases loaded as this is times 15 MiB
    memory = max(2 * count * 15, 2048) << 20
    odoo = start(stack, NAME, workers=2, via=(proxy.host, proxy.port),
                 options={"max_cron_threads": 1, "db_name": None, "dbfilter": "^fleet", "limit_memory_soft": memory,
                          "limit_memory_hard": 2 * memory})
    try:
        yield from served(stack, measure, odoo, proxy, names, seconds)
    finally:
        odoo.kill()
        proxy.close()


def make(stack, names):
    """These databases, in none of which a job is due, in a PostgreSQL that counts its statements."""
    stack.postgres.settings = COUNTED
    stack.postgres.restart()
    stack.postgres.query("CREATE EXTENSION pg_stat_statements")
    stack.database(SEED)
    stack.postgres.query("UPDATE ir_cron SET active = false", dbname=SEED)
    # the pooler keeps its connections, and a database that has some cannot be copied
    stack.pgbouncer.restart()
    stack.postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [SEED])
    for name in names:
        stack.postgres.query(f'CREATE DATABASE "{name}" TEMPLATE "{SEED}" OWNER {ODOO_USER}')


class Tenant(Client):
    """Somebody who is not logged in to the database that the channel has the name of."""

    def __init__(self, swarm, channels, last):
        super().__init__(swarm, channels, last)
        answer = requests.get(f"{swarm.odoo.url}/web?db={channels[0]}", allow_redirects=False, timeout=60)
        self.cookie = answer.cookies["session_id"]

    def credentials(self):
        return f"Cookie: session_id={self.cookie}"


def served(stack, measure, odoo, proxy, names, seconds):
    # in one of ten nobody is there
    nobody = max(1, len(names) // 10)
    awaited, deserted = names[nobody:], names[:nobody]
    first = missed(stack, names)
    with Swarm(odoo, DATABASE, len(awaited), lambda index: [awaited[index]], first, Tenant) as swarm:
        wait_listening(stack.postgres, odoo, "bus", timeout=PATIENCE)
        wait_healthy(odoo, PATIENCE)
        rested(stack, odoo)
        case = f"{len(names)} databases, "
        with Span(stack, odoo, names) as span:
            time.sleep(seconds)
        yield from span.results(measure, case + "idle", awaited, deserted)

        number = missed(stack, names)
        with Span(stack, odoo, names) as span:
            for pid, *_ in direct(stack.postgres, odoo):
                stack.postgres.query("SELECT pg_terminate_backend(%s)", [pid])
            caught_up(swarm, number)
            took = time.monotonic() - span.began
            rested(stack, odoo)
        yield from span.results(measure, case + "all reconnect", awaited, deserted)
        yield Result(measure, case + "all reconnect", NAME, "until the last database is caught up", "s", took)

        proxy.refuse()
        wait_failing(odoo, PATIENCE)
        time.sleep(2)       # the polling has begun
        with Span(stack, odoo, names) as span:
            time.sleep(seconds)
        yield from span.results(measure, case + "degraded", awaited, deserted)

        number = missed(stack, names)
        with Span(stack, odoo, names) as span:
            proxy.heal()
            wait_healthy(odoo, PATIENCE)
            caught_up(swarm, number)
            took = time.monotonic() - span.began
            rested(stack, odoo)
        yield from span.results(measure, case + "back", awaited, deserted)
        yield Result(measure, case + "back", NAME, "until the last database is caught up", "s", took)


def missed(stack, names):
    """Commit a notification in each database, of which nobody is told: their id, which is the same in all."""
    ids = {stack.postgres.query(
        "INSERT INTO bus_bus (channel, message, create_date) VALUES (%s, %s, now() AT TIME ZONE 'UTC') RETURNING id",
        [json.dumps([name, name], separators=(",", ":")), '{"type": "bench", "payload": 1}'], dbname=name)[0][0]
        for name in names}
    assert len(ids) == 1, "the databases are copies of one"
    return ids.pop()


def caught_up(swarm, number):
    wait_until(lambda: all(client.last >= number for client in swarm.clients), PATIENCE,
               lambda: f"{sum(client.last < number for client in swarm.clients)} databases are not caught up")


def rested(stack, odoo):
    """Wait until the processes of Odoo have done what they had to."""
    def rests():
        before = processes(odoo)
        time.sleep(2)
        return all(used - before.get(pid, used) < 0.1 for pid, used in processes(odoo).items())
    wait_until(rests, PATIENCE, "Odoo does not come to rest")


def processes(odoo):
    return {pid: alive(cpu, pid) for pid in children(odoo.pid)}


class Span:
    """What happens until the block ends."""

    def __init__(self, stack, odoo, names):
        self.stack, self.odoo, self.names = stack, odoo, names
        self.seconds, self.servers = [], 0
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def __enter__(self):
        self.console = self.stack.pgbouncer.console()   # a login for each question would be seen in the pooler's CPU
        self.before = self.used()
        self.statements = {name: self.counted(name) for name in (JOBS, LOOKS)}
        self.counts = self.count()
        self.began = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.ending.set()
        self.thread.join()
        self.length = time.monotonic() - self.began
        self.seconds.append(self.count())
        self.console.close()
        self.after = self.used()
        self.statements = {name: {database: number - before.get(database, 0)
                                  for database, number in self.counted(name).items()}
                           for name, before in self.statements.items()}

    def watch(self):
        while not self.ending.wait(1):
            self.seconds.append(self.count())

    def count(self):
        """(queries, connections made) at the pooler up to now."""
        self.servers = max(self.servers, len(self.show("SERVERS")))
        # without the console's own
        queries = sum(int(row["total_query_count"]) for row in self.show("STATS") if row["database"] != "pgbouncer")
        return queries, self.stack.pgbouncer.log_text().count(" login attempt: db=fleet")

    def show(self, what):
        with self.console.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cr:
            cr.execute(f"SHOW {what}")
            return cr.fetchall()

    def counted(self, pattern):
        """How often a statement was run in each database."""
        rows = self.stack.postgres.query(
            "SELECT datname, sum(calls)::int FROM pg_stat_statements JOIN pg_database ON dbid = pg_database.oid"
            " WHERE query LIKE %s AND datname = ANY(%s) GROUP BY 1", [pattern, self.names])
        return {name: dict(rows).get(name, 0) for name in self.names}

    def used(self):
        evented = self.odoo.evented_pid
        others = [pid for pid in children(self.odoo.pid) if pid != evented]
        postgres = self.stack.postgres.pid
        return {"PostgreSQL": sum(alive(cpu, pid) for pid in [postgres, *children(postgres)]),
                "the pooler": cpu(self.stack.pgbouncer.pid), "the process for websockets": cpu(evented),
                "workers and cron": sum(alive(cpu, pid) for pid in others)}

    def results(self, measure, case, awaited, deserted):
        each = list(zip([self.counts, *self.seconds], self.seconds, strict=False))
        for index, what in enumerate(("queries", "connections made")):
            grown = [after[index] - before[index] for before, after in each]
            yield Result(measure, case, NAME, f"{what} at the pooler", "a second", sum(grown) / self.length)
            yield Result(measure, case, NAME, f"{what} at the pooler, in the busiest second", "", max(grown))
        yield Result(measure, case, NAME, "watched for", "s", self.length)
        yield Result(measure, case, NAME, "server connections of the pooler, most", "", self.servers)
        jobs, looks = self.statements[JOBS], self.statements[LOOKS]
        yield Result(measure, case, NAME, "times that jobs were looked for, most of any database", "",
                     max(jobs.values()))
        yield Result(measure, case, NAME, "looks at the bus, of a database", "a minute",
                     60 * sum(looks[name] for name in awaited) / len(awaited) / self.length)
        yield Result(measure, case, NAME, "looks at the bus of databases that nobody waits for", "",
                     sum(looks[name] for name in deserted))
        for who, used in self.after.items():
            yield Result(measure, case, NAME, f"CPU of {who}", "% of a core",
                         100 * (used - self.before[who]) / self.length)
