"""How many server connections PostgreSQL holds for an Odoo with few and with many HTTP workers."""
import concurrent.futures
import contextlib

from stack.base import StackError
from stack.clients.client import Session
from stack.process import wait_until

from .report import Result
from .setups import DATABASE, SETUPS, session_pooler, start

TITLE = "Server connections"
NOTE = ("What PostgreSQL holds for one Odoo with so many HTTP workers and one cron worker: under load, when every "
        "worker is in a transaction for a tenth of a second at a time and sends notifications, the most that was seen; "
        "and idle, right after. A pool of PgBouncer's holds 20, here as it is shipped. Kept for NOTIFYs: connections "
        "at Odoo's own address that this addon's processes keep, each for 60 s after its last NOTIFY; without a pooler "
        "each is one of PostgreSQL's and counted above. A minute later: nobody has sent anything meanwhile.")
SHOWN, PLOTS = ["under load", "idle", "kept for NOTIFYs", "idle, a minute later"], []
NAMES = ["direct", "pooled", "session", "published", "addon", "addon direct"]
NAME = "bus_alt_connection notify"      # application_name of what is kept for NOTIFYs
PATIENCE = 90       # seconds until what is kept for 60 s has to be closed
ROUNDS, WORK = 6, 0.1     # requests a worker, and seconds that each takes beside its queries
COUNT = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename = 'odoo'"


def run(lab, quick):
    workers = [1, 4] if quick else [1, 8, 32]
    for name in ["addon", "addon direct"] if quick else NAMES:
        for number in workers:
            yield from held(lab.stack, name, number, later=not quick and number == workers[-1])


def count(stack):
    return stack.postgres.query(COUNT)[0][0]


def kept(stack, name):
    """How many connections at Odoo's own address processes keep for their NOTIFYs."""
    if SETUPS[name].pooler == "transaction":
        return sum(row["application_name"] == NAME for row in stack.pgbouncer.show("CLIENTS"))
    return stack.postgres.query("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [NAME])[0][0]


def held(stack, name, workers, later):
    """`later`: whether to look again when what is kept for NOTIFYs is closed."""
    # what an earlier setup left open would count
    stack.pgbouncer.restart()

    def none():
        stack.postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'odoo'")
        return not count(stack)
    wait_until(none, 30, "the server connections of earlier setups do not go away")
    poolers = {name: session_pooler(stack)} if SETUPS[name].pooler == "session" else {}
    odoo = start(stack, name, workers=workers, poolers=poolers, options={"max_cron_threads": 1})
    try:
        session, channel = Session(odoo, DATABASE), f"connections-{name}"
        action = session.call_kw("ir.actions.server", "create", {
            "name": "Work and notify", "model_id": session.any_model(), "state": "code",
            "code": f"env.user.name; time.sleep({WORK}); env['bus.bus']._sendone('{channel}', 'bench', 1)"})
        case = f"{workers} workers" if workers > 1 else "1 worker"

        def result(metric, value):
            return Result("connections", case, name, metric, "", value)
        with session.subscribe([channel]) as client:
            client.wait_subscribed()
            most = 0
            with concurrent.futures.ThreadPoolExecutor(2 * workers) as pool:
                working = [pool.submit(session.call_kw, "ir.actions.server", "run", [action])
                           for _ in range(ROUNDS * workers)]
                while not all(future.done() for future in working):
                    most = max(most, count(stack))
                    concurrent.futures.wait(working, 0.1)
                for future in working:
                    future.result()
            idle = count(stack)
            yield result("under load", max(most, idle))
            yield result("idle", idle)
            if SETUPS[name].addon == "ours":
                yield result("kept for NOTIFYs", kept(stack, name))
                if later:
                    with contextlib.suppress(StackError):       # then that is what the figures say
                        wait_until(lambda: not kept(stack, name), PATIENCE, "")
                    yield result("kept for NOTIFYs, a minute later", kept(stack, name))
                    yield result("idle, a minute later", count(stack))
    finally:
        odoo.kill()
        for pooler in poolers.values():
            pooler.kill()
