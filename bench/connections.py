"""How many server connections PostgreSQL holds, against the number of HTTP workers."""
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
        "and idle, right after. A pool of PgBouncer's holds 20, here as it is shipped. A server has 100 by default; "
        "the table says how many workers that is enough for, by the line through the last two. Kept for NOTIFYs: "
        "connections at Odoo's own address that this addon's processes keep, each for 60 s after its last NOTIFY; "
        "without a pooler each is one of PostgreSQL's and counted above, with one it takes none. A minute later: "
        "nobody has sent anything meanwhile.")
PLOTS = ["under load"]
NAMES = ["direct", "pooled", "session", "published", "addon", "addon direct"]
DEFAULT = 97        # max_connections is 100, three are kept for superusers
NAME = "bus_alt_connection notify"      # application_name of what is kept for NOTIFYs
KEPT = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{NAME}'"
PATIENCE = 90       # seconds until what is kept for 60 s has to be closed
ROUNDS, WORK = 6, 0.1     # requests a worker, and seconds that each takes beside its queries
COUNT = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename = 'odoo'"


def run(lab, quick):
    workers = [1, 4] if quick else [1, 4, 8, 16, 32]
    for name in ["addon", "addon direct"] if quick else NAMES:
        most = dict.fromkeys(workers)
        for number in workers:
            for result in held(lab.stack, name, number, later=not quick and number == workers[-1]):
                if result.metric == "under load":
                    most[number] = result.value
                yield result
        few, many = workers[-2:]
        slope = (most[many] - most[few]) / (many - few)
        room = (DEFAULT - most[few]) / slope + few if slope >= 0.5 else None
        yield Result("connections", "100 connections are enough for", name, "workers", "",
                     "any number" if room is None else f"{int(room)}")


def count(stack):
    return stack.postgres.query(COUNT)[0][0]


def none_left(stack):
    """End those of who was before, and wait until they are gone."""
    def none():
        stack.postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'odoo'")
        return not count(stack)
    wait_until(none, 30, "the server connections of earlier setups do not go away")


def kept(stack, name):
    """How many connections at Odoo's own address processes keep for their NOTIFYs."""
    if SETUPS[name].pooler == "transaction":
        return sum(row["application_name"] == NAME for row in stack.pgbouncer.show("CLIENTS"))
    return stack.postgres.query(KEPT)[0][0]


def held(stack, name, workers, later):
    """`later`: whether to look again when what is kept for NOTIFYs is closed."""
    # a pooler that has served nobody yet: what an earlier one left open would count
    pooler = session_pooler(stack) if SETUPS[name].pooler == "session" else stack.pgbouncer
    if SETUPS[name].pooler == "transaction":
        pooler.restart()
    none_left(stack)
    odoo = start(stack, name, workers=workers, poolers={name: pooler}, options={"max_cron_threads": 1})
    try:
        session, channel = Session(odoo, DATABASE), f"connections-{name}"
        model = session.any_model()
        action = session.call_kw("ir.actions.server", "create", {
            "name": "Work and notify", "model_id": model, "state": "code",
            "code": f"env.user.name; time.sleep({WORK}); env['bus.bus']._sendone('{channel}', 'bench', 1)"})
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
            case = f"{workers} workers" if workers > 1 else "1 worker"
            yield Result("connections", case, name, "under load", "", max(most, idle))
            yield Result("connections", case, name, "idle", "", idle)
            if SETUPS[name].addon == "ours":
                yield Result("connections", case, name, "kept for NOTIFYs", "", kept(stack, name))
                if later:
                    with contextlib.suppress(StackError):       # then that is what the figures say
                        wait_until(lambda: not kept(stack, name), PATIENCE, "")
                    yield Result("connections", case, name, "kept for NOTIFYs, a minute later", "", kept(stack, name))
                    yield Result("connections", case, name, "idle, a minute later", "", count(stack))
    finally:
        odoo.kill()
        if pooler is not stack.pgbouncer:
            pooler.kill()
