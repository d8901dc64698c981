"""A simulation: many instances come back to one server after its restart. The waits are the addon's own `Backoff`."""
import collections
import heapq
import importlib
import math
import random
import sys

from stack import ADDON
from stack.addon import importable

from .report import Result

TITLE = "Many instances reconnect (simulation)"
NOTE = ("So many instances lose their server at the same moment. For five seconds it refuses every attempt, then it "
        "takes up to 200 new connections a second and lets a hundred more wait; it refuses the rest. A refusal takes "
        "1 ms, a connection the time that it waits. 99 % back: seconds from the moment that the server takes "
        "connections. The addon's waits are made by its own code; the others try again after a fixed time.")
PLOTS = ["attempts a second, most", "99 % back"]
AWAY = 5.0
RATE = 200
QUEUE = 100
REFUSAL = 0.001
LONGEST = 600.0


def addon_module(name):
    """A module of the addon.

    The package is not imported as such: that would put the addon in force in an Odoo, which is not here.
    """
    sys.path[:0] = [path for path in odoo_path() if path not in sys.path]
    importable()
    return importlib.import_module(f"{ADDON}.{name}")


def backoff():
    """The addon's class `Backoff`, and the longest wait that its listener asks of it while waiting may help."""
    return addon_module("backoff").Backoff, addon_module("listener").Listener.RETRY_SECONDS


def odoo_path():
    from stack import Machine
    return [path for path in Machine.find(("odoo",)).odoo.env.get("PYTHONPATH", "").split(":") if path]


class Fixed:
    def __init__(self, seconds):
        self.seconds = seconds

    def next(self):
        return self.seconds


def run(lab, quick):
    kind, longest = backoff()
    ways = {"addon": lambda: kind(longest), "fixed 50 s": lambda: Fixed(50.0), "fixed 1 s": lambda: Fixed(1.0),
            "no wait": lambda: Fixed(0.0)}
    for _ in range(1 if quick else 3):
        for count in [1, 100] if quick else [1, 10, 100, 1000, 10000]:
            for name, make in ways.items():
                if name == "no wait" and count > 1000:
                    continue        # five million attempts a second: there is nothing to learn from it
                yield from simulated(count, name, make)


def simulated(count, name, make):
    attempts, back = simulate(count, make)
    case = f"{count} instances" if count > 1 else "1 instance"
    yield Result("reconnect", case, name, "attempts a second, most", "", max(attempts.values()))
    yield Result("reconnect", case, name, "attempts a second, most, once it is up", "",
                 max((number for second, number in attempts.items() if second >= AWAY), default=0))
    most = sorted(back)[max(0, math.ceil(count * 0.99) - 1)]
    yield Result("reconnect", case, name, "99 % back", "s", most - AWAY)


def simulate(count, make, rate=RATE, longest=LONGEST):
    """(attempts in each second, when each instance was back, at `longest` if not before)

    `rate`: what the server takes in a second."""
    attempts, back = collections.Counter(), []
    served = AWAY       # until when the server is at work on those it has taken
    events = []
    for number in range(count):
        waits = make()
        # all lose it within a few milliseconds; each waits as long as its backoff says, also the first time
        events.append((random.uniform(0, 0.01) + waits.next(), number, waits))
    heapq.heapify(events)
    while events:
        at, number, waits = heapq.heappop(events)
        attempts[int(at)] += 1
        waiting = (served - at) * rate
        if at < AWAY or waiting > QUEUE:
            # from the begin of one attempt to the begin of the next
            again = at + max(waits.next(), REFUSAL)
            if again < longest:
                heapq.heappush(events, (again, number, waits))
            else:
                back.append(longest)
        else:
            served = max(served, at) + 1 / rate
            back.append(served)
    return attempts, back

