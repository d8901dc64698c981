"""A busy cluster: what others' notifications cost a process that serves one database, and what its own do."""
import time

from .clients import Sender, Swarm
from .report import Result
from .setups import DATABASE, Lab, cpu
from .throughput import burst

NAMES = ["direct", "published", "addon", "addon direct"]
CLIENTS = 10
DATABASES = 200     # of others
PATIENCE = 30


def run(stack, measure, quick):
    rounds, seconds, number, names = (1, 1, 300, ["direct", "addon"]) if quick else (3, 5, 5000, NAMES)
    with Lab(stack, names) as lab:
        for _ in range(rounds):
            for rate in (100, 1000):
                for name in names:
                    with lab.only(name):
                        yield from foreign(lab, measure, name, rate, rate * seconds)
            for case, clients in {"one hot channel": 1, "a burst on 50 channels": 50}.items():
                # who comes later finds more rows in the table
                for name in names if quick else [*names, *reversed(names)]:
                    with lab.only(name):
                        yield from own(lab, measure, name, case, clients, number)


def foreign(lab, measure, name, rate, number):
    """Others' notifications, evenly spaced, then one of our own, which is through once they are."""
    own = f"foreign-{time.monotonic_ns()}"
    with Sender(lab.pooler(name), DATABASE) as sender:
        first, = sender.insert([own])
        with Swarm(lab.odoos[name], DATABASE, CLIENTS, lambda _: [own], last=first) as swarm:
            swarm.settle()
            lab.rest(lab.pid(name))
            used, began = cpu(lab.pid(name)), time.monotonic()
            for index in range(number):
                sender.notify([f'[["tenant{index % DATABASES}","channel-{index}-{own}"]]'])
                time.sleep(max(0.0, began + (index + 1) / rate - time.monotonic()))     # the rate that is asked for
            used, span = cpu(lab.pid(name)) - used, time.monotonic() - began
            last, = sender.insert([own])
            sender.notify([f"[{sender.wire(own)}]"])
            lost = 0 if swarm.wait(last, PATIENCE) else CLIENTS
    case = f"{rate} foreign a second"
    yield Result(measure, case, name, "lost", "", lost)
    yield Result(measure, case, name, "a notification", "µs of CPU", 1e6 * used / number)
    yield Result(measure, case, name, "foreign notifications", "% of a core", 100 * used / span)


def own(lab, measure, name, case, clients, number):
    """What `throughput` measures, told in the unit of this measure."""
    for result in burst(lab, name, case, clients, number):
        if result.metric == "CPU":
            # milliseconds for a thousand are microseconds for one
            yield Result(measure, case, name, "a notification", "µs of CPU", result.value)
        elif result.metric != "rate":
            yield result._replace(measure=measure)
