"""Many databases with one Odoo: what its listeners cost at rest, when they reconnect, and while they poll."""
import contextlib
import json
import time

import requests

from stack import Stack
from stack.clients.listeners import direct, wait_listening
from stack.clients.state import wait_failing, wait_healthy
from stack.faults.network import Proxy
from stack.process import children, wait_until
from stack.servers.postgres import ODOO_USER

from .clients import Client, Swarm
from .report import Result
from .setups import DATABASE, alive, cpu, start

TITLE = "Many databases"
NOTE = ("So many databases, each with Odoo in it, with one Odoo of two HTTP workers and one cron worker; in nine of "
        "ten somebody is connected. At rest; then all listeners' connections are terminated, a notification having "
        "been committed, and not announced, in each database before; then connections of listeners are refused, so "
        "that the addon polls. All of it is a sum over databases. Statements on the bus "
        "are of one database that somebody is connected to, counted by PostgreSQL.")
SHOWN, PLOTS = ["queries at the pooler", "log-ins at the pooler", "CPU of the pooler", "CPU of PostgreSQL",
                "server connections of the pooler", "statements on the bus", "caught up after"], []
NAME = "addon"
PATIENCE = 180
SETTINGS = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "all",
            "pg_stat_statements.max": 20000, "max_connections": 1200}
# what Odoo's cron asks a database for first, and what is read of the bus
JOBS, BUS = "%ir_module_module%WHERE name=%", "%FROM%bus_bus%"


def run(lab, quick):
    count, seconds = (4, 6) if quick else (200, 60)     # longer than from one poll to the next
    names = [f"many{number:03}" for number in range(count)]
    awaited, deserted = names[count // 10 or 1:], names[:count // 10 or 1]
    # a stack that is thrown away: to drop so many databases takes longer than to make them
    with Stack(machine=lab.stack.machine, pooler={"settings": {"max_client_conn": 5000}}) as stack:
        make(stack, names)
        proxy = Proxy((stack.postgres.host, stack.postgres.port))
        # Odoo keeps as many databases loaded as this is times 15 MiB
        memory = max(2 * count * 15, 2048) << 20
        odoo = start(stack, NAME, workers=2, via=(proxy.host, proxy.port),
                     options={"max_cron_threads": 1, "db_name": None, "dbfilter": "^many", "limit_memory_soft": memory,
                              "limit_memory_hard": 2 * memory})
        with contextlib.ExitStack() as exits:
            exits.callback(proxy.close)
            exits.callback(odoo.kill)
            swarm = exits.enter_context(
                Swarm(odoo, DATABASE, len(awaited), lambda index: [awaited[index]], missed(stack, names), Tenant))
            wait_listening(stack.postgres, odoo, "bus", timeout=PATIENCE)
            wait_healthy(odoo, PATIENCE)
            rest(odoo)
            yield from span(stack, odoo, "idle", awaited, deserted, lambda: time.sleep(seconds))
            number = missed(stack, names)
            yield from span(stack, odoo, "all reconnect", awaited, deserted,
                            lambda: reconnect(stack, odoo, swarm, number))
            proxy.refuse()
            wait_failing(odoo, PATIENCE)
            time.sleep(2)       # the polling has begun
            yield from span(stack, odoo, "polling", awaited, deserted, lambda: time.sleep(seconds))


def make(stack, names):
    """Make these databases, in none of which a job is due, in a PostgreSQL that counts its statements."""
    stack.postgres.settings = SETTINGS
    stack.postgres.restart()
    stack.postgres.query("CREATE EXTENSION pg_stat_statements")
    stack.database(DATABASE)
    stack.postgres.query("UPDATE ir_cron SET active = false", dbname=DATABASE)
    # the pooler keeps its connections, and a database that has some cannot be copied
    stack.pgbouncer.restart()
    stack.postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [DATABASE])
    for name in names:
        stack.postgres.query(f'CREATE DATABASE "{name}" TEMPLATE "{DATABASE}" OWNER {ODOO_USER}')


class Tenant(Client):
    """Somebody who is not logged in to the database that the channel has the name of."""

    def __init__(self, swarm, channels, last):
        super().__init__(swarm, channels, last)
        answer = requests.get(f"{swarm.odoo.url}/web?db={channels[0]}", allow_redirects=False, timeout=60)
        self.cookie = answer.cookies["session_id"]

    def credentials(self):
        return f"Cookie: session_id={self.cookie}"


def missed(stack, names):
    """Commit a notification that is not announced in each database: their id, which is the same in all."""
    ids = {stack.postgres.query(
        "INSERT INTO bus_bus (channel, message, create_date) VALUES (%s, %s, now() AT TIME ZONE 'UTC') RETURNING id",
        [json.dumps([name, name], separators=(",", ":")), '{"type": "bench", "payload": 1}'], dbname=name)[0][0]
        for name in names}
    assert len(ids) == 1, "the databases are copies of one"
    return ids.pop()


def reconnect(stack, odoo, swarm, number):
    """Terminate the listeners: seconds until every database has what it missed."""
    began = time.monotonic()
    for pid, *_ in direct(stack.postgres, odoo):
        stack.postgres.query("SELECT pg_terminate_backend(%s)", [pid])
    wait_until(lambda: all(client.last >= number for client in swarm.clients), PATIENCE,
               lambda: f"{sum(client.last < number for client in swarm.clients)} databases are not caught up")
    took = time.monotonic() - began
    rest(odoo)
    return took


def rest(odoo):
    """Wait until the processes of Odoo have done what they had to."""
    def used():
        return {pid: alive(cpu, pid) for pid in children(odoo.pid)}

    def rests():
        before = used()
        time.sleep(2)       # the span that is measured
        return all(now - before.get(pid, now) < 0.1 for pid, now in used().items())
    wait_until(rests, PATIENCE, "Odoo does not come to rest")


def span(stack, odoo, what, awaited, deserted, happens):
    """The results of what happens until `happens()` returns."""
    case, names = f"{len(awaited) + len(deserted)} databases, {what}", [*awaited, *deserted]
    processes = {"PostgreSQL": [stack.postgres.pid, *children(stack.postgres.pid)], "the pooler": [stack.pgbouncer.pid],
                 "the process for websockets": [odoo.evented_pid]}

    def state():
        queries = sum(int(row["total_query_count"]) for row in stack.pgbouncer.show("STATS")
                      if row["database"] != "pgbouncer")
        return {"queries at the pooler": queries,
                "log-ins at the pooler": stack.pgbouncer.log_text().count(" login attempt: db=many"),
                **{f"CPU of {who}": 100 * sum(alive(cpu, pid) for pid in pids) for who, pids in processes.items()}}

    def counted(pattern):
        """How often such a statement was run in each database."""
        rows = dict(stack.postgres.query(
            "SELECT datname, sum(calls)::int FROM pg_stat_statements JOIN pg_database ON dbid = pg_database.oid"
            " WHERE query LIKE %s AND datname = ANY(%s) GROUP BY 1", [pattern, names]))
        return {name: rows.get(name, 0) for name in names}

    def result(metric, unit, value):
        return Result("databases", case, NAME, metric, unit, value)
    before, jobs, bus, began = state(), counted(JOBS), counted(BUS), time.monotonic()
    took = happens()
    length, after = time.monotonic() - began, state()
    jobs, bus = ({name: now - then[name] for name, now in counted(pattern).items()}
                 for pattern, then in ((JOBS, jobs), (BUS, bus)))
    for metric, value in after.items():
        unit = "% of a core" if metric.startswith("CPU") else "a second"
        yield result(metric, unit, (value - before[metric]) / length)
    yield result("server connections of the pooler", "", len(stack.pgbouncer.show("SERVERS")))
    yield result("statements on the bus", "a minute", 60 * sum(bus[name] for name in awaited) / len(awaited) / length)
    yield result("statements on the bus where nobody is connected", "", sum(bus[name] for name in deserted))
    yield result("times that jobs were looked for, most of any database", "", max(jobs.values()))
    if took:
        yield result("caught up after", "s", took)
