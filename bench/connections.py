"""How many server connections PostgreSQL holds, against the number of HTTP workers."""
import concurrent.futures

from stack.client import Sender, Session

from .report import Result
from .setups import DATABASE, SETUPS, session_pooler, start

TITLE = "Server connections"
NOTE = ("What PostgreSQL holds for one Odoo with so many HTTP workers and one cron worker: under load, when every "
        "worker answers requests and sends notifications, the most that was seen; and idle, right after. A server has "
        "100 by default; the table says how many workers that is enough for, by the line through the first and the "
        "last.")
PLOTS = ["under load"]
NAMES = ["direct", "session", "published", "addon"]
DEFAULT = 97        # max_connections is 100, three are kept for superusers
ROUNDS = 4
COUNT = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename = 'odoo'"


def run(lab, quick):
    workers = [1, 4] if quick else [1, 4, 8, 16, 32]
    for name in NAMES[::3] if quick else NAMES:
        most = dict.fromkeys(workers)
        for count in workers:
            for result in held(lab.stack, name, count):
                if result.metric == "under load":
                    most[count] = result.value
                yield result
        few, many = workers[0], workers[-1]
        slope = (most[many] - most[few]) / (many - few)
        room = (DEFAULT - most[few]) / slope + few if slope >= 0.5 else None
        yield Result("connections", "100 connections are enough for", name, "workers", "",
                     "any number" if room is None else f"{int(room)}")


def held(stack, name, workers):
    # a pooler of its own: what an earlier one left open would count
    pooler = session_pooler(stack) if SETUPS[name].pooler == "session" else stack.pgbouncer
    if SETUPS[name].pooler == "transaction":
        pooler.restart()
    others = stack.postgres.query(COUNT)[0][0]
    odoo = start(stack, name, workers=workers, poolers={name: pooler}, options={"max_cron_threads": 1})
    try:
        session = Session(odoo, DATABASE)
        sender = Sender(session, stack.pgbouncer, f"connections-{name}")
        with session.subscribe([sender.channel]) as client:
            client.wait_subscribed()
            sender.send_orm(0)
            action = sender.action

            def work(number):
                for _ in range(ROUNDS):
                    session.call_kw("ir.actions.server", "run", [action],
                                 context={"bus_channel": sender.channel, "bus_payload": number})
            most = 0
            with concurrent.futures.ThreadPoolExecutor(2 * workers) as pool:
                working = [pool.submit(work, number) for number in range(2 * workers)]
                while not all(future.done() for future in working):
                    most = max(most, stack.postgres.query(COUNT)[0][0])
                    concurrent.futures.wait(working, 0.1)
                for future in working:
                    future.result()
            idle = stack.postgres.query(COUNT)[0][0]
            case = f"{workers} workers" if workers > 1 else "1 worker"
            yield Result("connections", case, name, "under load", "", max(most, idle) - others)
            yield Result("connections", case, name, "idle", "", idle - others)
    finally:
        odoo.kill()
        if pooler is not stack.pgbouncer:
            pooler.kill()
