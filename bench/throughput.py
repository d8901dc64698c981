"""How many notifications a second a dispatcher takes, and what each costs."""
import time

from .clients import Sender, Swarm
from .report import Result
from .setups import DATABASE, DEAF, RECEIVING, cpu

TITLE = "Receiving alone: throughput"
NOTE = ("Sent by a script that keeps its connections. Rows are inserted and notified as fast as PostgreSQL takes them, "
        "a hundred NOTIFYs a transaction. Hot: one client, all on its channel. Distinct: 50 clients, each with a "
        "channel of its own. It ends when the last row is with its client. Foreign: NOTIFYs that name only other "
        "databases of the same cluster, of which there are so many, a millisecond apart; the process wakes for "
        "nothing. CPU is that of the process that serves websockets. This addon parses each notification that it has "
        "not just had; what is left of those that arrive together reaches Odoo's own loop once.")
PLOTS = ["rate", "CPU"]
BATCH = 100
FOREIGN = [1, 10, 100, 1000]
PATIENCE = 60
DELIVERING = [name for name in RECEIVING if name not in DEAF]     # latency shows that they are


def run(lab, quick):
    rounds, number, others = (1, 500, 200) if quick else (3, 5000, 1000)
    cases = {"one hot channel": 1, "50 distinct channels": 50}
    for _ in range(rounds):
        for case, clients in cases.items():
            for name in DELIVERING:
                with lab.only(name):
                    yield from burst(lab, name, case, clients, number)
        for databases in FOREIGN[2:3] if quick else FOREIGN:
            for name in DELIVERING:
                with lab.only(name):
                    yield from foreign(lab, name, databases, others)


def batches(payloads):
    return [payloads[index:index + BATCH] for index in range(0, len(payloads), BATCH)]


def one_by_one(sender, payloads):
    for payload in payloads:
        sender.notify([payload])
        time.sleep(0.001)       # what comes together is taken together, and tenants do not come together


def burst(lab, name, case, clients, number):
    tag = f"burst-{time.monotonic_ns()}"
    channels = [f"{tag}-{index}" for index in range(clients)]
    with Sender(lab.pooler(name), DATABASE) as sender:
        # what is the same in one transaction is notified once: a channel that nobody has makes each different
        wanted = [channels[index % clients] for index in range(number)]
        payloads = [f"[{sender.wire(channel)},{sender.wire(index)}]" for index, channel in enumerate(wanted)]

        def send():
            sent = []
            for rows, notifies in zip(batches(wanted), batches(payloads), strict=True):
                sent += sender.insert(rows)
                sender.notify(notifies)
            return sent
        pid = lab.pid(name)
        if name == "floor":
            mark, began, used = lab.floor.mark(), time.monotonic(), cpu(pid)
            send()
            ended, lost = lab.floor.heard(mark, tag, number, PATIENCE), 0
        else:
            first, = sender.insert([channels[0]])
            with Swarm(lab.odoos[name], DATABASE, clients, lambda index: [channels[index]], last=first) as swarm:
                swarm.settle()
                before = swarm.arrived
                began, used = time.monotonic(), cpu(pid)
                sent = send()
                while swarm.arrived - before < len(sent) and time.monotonic() < began + PATIENCE:
                    time.sleep(0.002)       # the swarm's thread counts, this one looks
                ended = max((at for client in swarm.clients for _, at in client.received), default=None)
                arrived = [entry for client in swarm.clients for entry, _ in client.received if entry > first]
                lost = len(set(sent) - set(arrived))
                yield Result("throughput", case, name, "duplicated", "", len(arrived) - len(set(arrived)))
        used = cpu(pid) - used
    yield Result("throughput", case, name, "lost", "", lost)
    if not lost and ended:
        yield Result("throughput", case, name, "rate", "notifications a second", number / (ended - began))
        yield Result("throughput", case, name, "CPU", "ms of CPU per 1,000", used * 1e6 / number)


def foreign(lab, name, databases, number):
    """Others' notifications, then one of our own, which is through once they are."""
    case = f"foreign, {databases} databases" if databases > 1 else "foreign, 1 database"
    own = f"foreign-{time.monotonic_ns()}"
    payloads = [f'[["tenant{index % databases}","channel-{index}-{own}"]]' for index in range(number)]
    with Sender(lab.pooler(name), DATABASE) as sender:
        pid = lab.pid(name)
        if name == "floor":
            mark, used = lab.floor.mark(), cpu(pid)
            one_by_one(sender, payloads)
            ended = lab.floor.heard(mark, own, number, PATIENCE)
        else:
            first, = sender.insert([own])
            with Swarm(lab.odoos[name], DATABASE, 10, lambda _: [own], last=first) as swarm:
                swarm.settle()
                used = cpu(pid)
                one_by_one(sender, payloads)
                last, = sender.insert([own])
                sender.notify([f"[{sender.wire(own)}]"])
                ended = time.monotonic() if swarm.wait(last, PATIENCE) else None
        used = cpu(pid) - used
    if ended:
        yield Result("throughput", case, name, "CPU", "ms of CPU per 1,000", used * 1e6 / number)
