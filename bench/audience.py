"""What a message costs the process that serves websockets when thousands wait on its channel, and what is added."""
import time

from stack.base import StackError
from stack.process import wait_until

from .clients import Sender, Swarm
from .report import Result
from .setups import DATABASE, SETUPS, cpu, start

TITLE = "One channel, many clients"
NOTE = ("So many clients are subscribed to one channel, and every ten seconds it gets a message. Each client that is "
        "woken queries the table of notifications once, which is what the time is spent on; this addon looks at the "
        "table by itself as well, for rows of which nobody was notified, and must wake nobody who was. CPU is that of "
        "the process that serves them, in all. The CPU of a message is what compares: until the last of thousands "
        "has it more than ten seconds may pass, and then the share of a core is smaller the slower all is. A look "
        "at the table is counted by PostgreSQL, whoever looks.")
SHOWN, PLOTS = ["CPU a message", "looks at the table for each message and client"], []
NAMES = ["direct", "addon direct", "published", "addon"]    # two without a pooler, and two with one
EVERY = 10          # seconds
PATIENCE = 30
SCANS = "SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relname = 'bus_bus'"


def run(lab, quick):
    clients, messages, every = (100, 2, 1) if quick else (5000, 6, EVERY)
    for name in NAMES:
        odoo = start(lab.stack, name)
        try:
            yield from heard(lab.stack, name, odoo, clients, messages, every)
        finally:
            odoo.kill()


def heard(stack, name, odoo, clients, messages, every=EVERY):
    without_statistics(stack.postgres)
    case, channel = f"{clients} clients", f"audience-{time.monotonic_ns()}"
    pooled = SETUPS[name].pooler is not None
    pooler = stack.pgbouncer if pooled else stack.postgres
    with Sender(pooler, DATABASE) as sender:
        first, = sender.insert([channel])
    with Swarm(odoo, DATABASE, clients, lambda _: [channel], last=first - 1) as swarm:
        # each finds this one by the look that its subscription begins with, which is not counted below
        if not swarm.wait(first, 60):
            raise StackError("not every client has subscribed within 60 s")
        swarm.settle(60)
        before = swarm.arrived
        looks = scans(stack, pooled)
        with Sender(pooler, DATABASE) as sender:
            pid = odoo.evented_pid
            for _ in range(messages):
                began, used = time.monotonic(), cpu(pid)
                sent, = sender.insert([channel])
                sender.notify([f"[{sender.wire(channel)}]"])
                if not swarm.wait(sent, PATIENCE):
                    break
                time.sleep(max(0.0, began + every - time.monotonic()))      # the span that is measured
                span, used = time.monotonic() - began, cpu(pid) - used
                yield Result("audience", case, name, "CPU", "% of a core", 100 * used / span)
                yield Result("audience", case, name, "CPU a message", "ms", 1000 * used)
        looks = scans(stack, pooled) - looks
        arrived = swarm.arrived - before
    yield Result("audience", case, name, "lost", "", clients * messages - arrived)
    yield Result("audience", case, name, "looks at the table for each message and client", "", looks / arrived)


def without_statistics(postgres):
    """To plan for ids above those it has statistics of, PostgreSQL looks into the index, which it counts as well."""
    postgres.query("ALTER TABLE bus_bus SET (autovacuum_enabled = off)", dbname=DATABASE)
    postgres.query("DELETE FROM pg_statistic WHERE starelid = 'bus_bus'::regclass", dbname=DATABASE)


def scans(stack, pooled):
    """How often the table was looked at up to now. A backend tells it when it ends, so all that are idle are ended."""
    pids = [pid for pid, in stack.postgres.query(
        "SELECT pid FROM pg_stat_activity WHERE datname = %s AND state = 'idle'", [DATABASE])]
    if pooled:
        stack.pgbouncer.command("RECONNECT")        # the pooler must not hand out one that is about to end
    else:
        stack.postgres.query("SELECT pg_terminate_backend(pid) FROM unnest(%s) pid", [pids])
    wait_until(lambda: not stack.postgres.query("SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)", [pids]), 30,
               "idle backends do not end")
    return stack.postgres.query(SCANS, dbname=DATABASE)[0][0]
