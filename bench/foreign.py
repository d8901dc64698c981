"""Receiving at a rate: what others' notifications cost a process that serves one database, and what its own do."""
import time

from .clients import Sender, Swarm
from .report import Aim, Result
from .setups import DATABASE, Lab, cpu

TITLE = "A busy cluster"
NOTE = ("Sent by a script that keeps its connections, to a process that serves websockets of one database. Foreign: "
        "notifications that name only other databases of the cluster, evenly spaced. One hot channel: one client, all "
        "on its channel; 50 channels: a client on each. Their rows are inserted and notified as fast as PostgreSQL "
        "takes them, a hundred NOTIFYs a transaction, and Odoo's queries for its clients are included.")
SHOWN, PLOTS = ["a notification", "rate"], ["a notification"]
NAMES = ["direct", "published", "addon", "addon direct"]
AIMS = [Aim("a notification", case, "addon", to, "at most", 1)
        for to, cases in (("direct", ("100 foreign a second", "1000 foreign a second")),
                          ("published", ("one hot channel", "a burst on 50 channels")))
        for case in cases]
BATCH = 100
CLIENTS = 10
DATABASES = 200     # of others
PATIENCE = 60


def run(lab, quick):
    rounds, seconds, number, names = (1, 1, 300, ["direct", "addon"]) if quick else (3, 5, 5000, NAMES)
    with Lab(lab.stack, names) as lab:
        for _ in range(rounds):
            for rate in (100, 1000):
                for name in names:
                    with lab.only(name):
                        yield from foreign(lab, name, rate, rate * seconds)
            for case, clients in {"one hot channel": 1, "a burst on 50 channels": 50}.items():
                # who comes later finds more rows in the table
                for name in names if quick else [*names, *reversed(names)]:
                    with lab.only(name):
                        yield from burst(lab, name, case, clients, number)


def result(case, name, metric, unit, value):
    return Result("foreign", case, name, metric, unit, value)


def foreign(lab, name, rate, number):
    """Others' notifications, evenly spaced, then one of the process's own, which is through once they are."""
    own, case = f"foreign-{time.monotonic_ns()}", f"{rate} foreign a second"
    with Sender(lab.pooler(name), DATABASE) as sender:
        first, = sender.insert([own])
        with Swarm(lab.odoos[name], DATABASE, CLIENTS, lambda _: [own], last=first) as swarm:
            swarm.settle()
            lab.rest(lab.pid(name))
            used, began = cpu(lab.pid(name)), time.monotonic()
            for index in range(number):
                sender.notify([f'[["tenant{index % DATABASES}","channel-{index}-{own}"]]'])
                time.sleep(max(0.0, began + (index + 1) / rate - time.monotonic()))     # the rate that is asked for
            used = cpu(lab.pid(name)) - used
            last, = sender.insert([own])
            sender.notify([f"[{sender.wire(own)}]"])
            yield result(case, name, "lost", "", 0 if swarm.wait(last, PATIENCE) else CLIENTS)
    yield result(case, name, "a notification", "µs of CPU", 1e6 * used / number)


def burst(lab, name, case, clients, number):
    """Its own notifications, as fast as PostgreSQL takes them."""
    tag = f"burst-{time.monotonic_ns()}"
    channels = [f"{tag}-{index}" for index in range(clients)]
    with Sender(lab.pooler(name), DATABASE) as sender:
        first, = sender.insert([channels[0]])
        # what is the same in one transaction is notified once: a channel that nobody has makes each different
        wanted = [channels[index % clients] for index in range(number)]
        payloads = [f"[{sender.wire(channel)},{sender.wire(index)}]" for index, channel in enumerate(wanted)]
        with Swarm(lab.odoos[name], DATABASE, clients, lambda index: [channels[index]], last=first) as swarm:
            swarm.settle()
            before, began, used, sent = swarm.arrived, time.monotonic(), cpu(lab.pid(name)), []
            for begin in range(0, number, BATCH):
                sent += sender.insert(wanted[begin:begin + BATCH])
                sender.notify(payloads[begin:begin + BATCH])
            while swarm.arrived - before < len(sent) and time.monotonic() < began + PATIENCE:
                time.sleep(0.002)       # the swarm's thread counts, this one looks
            used = cpu(lab.pid(name)) - used
            arrived = [(entry, at) for client in swarm.clients for entry, at in client.received if entry > first]
    ids = {entry for entry, _ in arrived}
    yield result(case, name, "lost", "", len(set(sent) - ids))
    yield result(case, name, "duplicated", "", len(arrived) - len(ids))
    if ids >= set(sent):
        yield result(case, name, "a notification", "µs of CPU", 1e6 * used / number)
        yield result(case, name, "rate", "a second", number / (max(at for _, at in arrived) - began))
