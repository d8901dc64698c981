"""How long from a commit to a websocket client, one notification at a time."""
import contextlib
import statistics
import threading
import time

import requests

from stack.clients.client import OdooError

from .clients import Sender, Swarm, login
from .report import Result
from .setups import DATABASE, DEAF, RECEIVING, cpu

TITLE = "Receiving alone: latency"
NOTE = ("Sent by a script that keeps its connections, which is none of what Odoo does to send. From the commit of a "
        "notification to its arrival, one at a time, in milliseconds. Every client has subscribed to the one channel, "
        "so each arrival is a query of Odoo's of its own. Busy: one HTTP worker answers search_read all the time, on "
        "the same two cores. CPU is that of the process that serves "
        "websockets, from the clients' connecting on. The addon's own part is what it has over the "
        "others on the same path: this addon over the published one behind the pooler, and the last row over Odoo "
        "straight to PostgreSQL. The rest is the pooler's part in Odoo's queries.")
SHOWN, PLOTS = ["p50", "p99"], ["p50"]
GIVE_UP = 2     # so many lost ones in a row
SECONDS = 2     # after which one counts as lost


def run(lab, quick):
    # many short turns: what drifts on the machine drifts for all alike
    rounds, counts = (1, {1: 30, 10: 5}) if quick else (8, {1: 150, 10: 30, 100: 6})
    loads, everything = ["idle", "busy"], {}
    for _ in range(rounds):
        for clients, number in counts.items():
            for load in loads:
                for name in RECEIVING:
                    # a setup that receives nothing is asked once
                    if clients == 1 or name not in DEAF:
                        with lab.only(name), busy(lab, name, load == "busy"):
                            used = cpu(lab.pid(name))
                            delays, lost = one_at_a_time(lab, name, clients, number)
                            used = cpu(lab.pid(name)) - used
                        case = f"{clients} clients, {load}" if clients > 1 else f"1 client, {load}"
                        everything.setdefault((case, name), []).extend(delays)
                        yield Result("latency", case, name, "lost", "", lost)
                        if len(delays) >= 10:
                            yield Result("latency", case, name, "p50", "ms", statistics.median(delays))
                            yield Result("latency", case, name, "CPU", "ms a notification", used * 1000 / number)
    for (case, name), delays in everything.items():
        if len(delays) >= 20:
            steps = statistics.quantiles(delays, n=1000, method="inclusive")
            yield Result("latency", case, name, "p99", "ms", steps[989])
            if len(delays) >= 1000:
                yield Result("latency", case, name, "p99.9", "ms", steps[998])


def one_at_a_time(lab, name, clients, number):
    """(milliseconds from commit to client of each, how many were lost)"""
    channel = f"latency-{time.monotonic_ns()}"
    with Sender(lab.pooler(name), DATABASE) as sender:
        first, = sender.insert([channel])
        with Swarm(lab.odoos[name], DATABASE, clients, lambda _: [channel], last=first) as swarm:
            swarm.settle()
            delays, lost, missed = [], 0, 0
            for _ in range(number):
                sent, = sender.insert([channel])
                committed = time.monotonic()
                sender.notify([f"[{sender.wire(channel)}]"])
                missed = 0 if swarm.wait(sent, SECONDS) else missed + 1
                for client in swarm.clients:
                    at = [at for entry, at in client.received[-3:] if entry == sent]
                    lost += not at
                    delays.extend((when - committed) * 1000 for when in at)
                if missed == GIVE_UP:
                    break
    return delays, lost


@contextlib.contextmanager
def busy(lab, name, wanted):
    """Keep one HTTP worker of a setup at work."""
    if not wanted:
        yield
        return
    ending = threading.Event()
    session = login(lab.odoos[name], DATABASE)

    def work():
        while not ending.is_set():
            with contextlib.suppress(OdooError, requests.RequestException):
                session.call_kw("ir.model.fields", "search_read", [["model", "like", "res."]], ["name"], limit=200)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(60)
