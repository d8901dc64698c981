"""What thousands of clients cost, and what the catch-up after a lost connection does to those who connect meanwhile."""
import itertools
import statistics
import threading
import time

from stack.clients.state import wait_healthy
from stack.process import wait_until

from .clients import AT_ONCE, TIMEOUT, Sender, Swarm
from .report import Result
from .setups import DATABASE, memory, start

TITLE = "Growth"
NOTE = ("So many clients have subscribed to one channel each, and to one that all have. The memory is that of the "
        "process that serves them. Then rows are committed of which nobody is notified, as after a loss, and the "
        "listening backend is terminated: first a row each for one client in a hundred, then, the next time, one for "
        "all. Only this addon catches up; others leave the row until something else wakes the client. It wakes "
        "those who missed something, and leaves half of the processor's time to others. The stall is the longest "
        "time that a websocket's ping waited for its answer meanwhile; the one that connects opens a websocket and "
        "subscribes again and again. Waiting: clients that waited for a server connection of the pooler.")
PLOTS = ["memory", "catch-up"]
NAMES = ["direct", "published", "addon"]
PATIENCE = 90
PINGERS, EVERY = 20, 0.02       # seconds from one ping to the next


def run(lab, quick):
    stack = lab.stack
    for name in ["addon"] if quick else NAMES:
        odoo = start(stack, name)
        try:
            before = memory(odoo.evented_pid)
            for clients in [100] if quick else [10, 100, 1000, 5000]:
                yield from grown(stack, name, odoo, clients, before)
        finally:
            odoo.kill()


def grown(stack, name, odoo, clients, before):
    case, tag = f"{clients} clients", f"growth-{time.monotonic_ns()}"
    pooler = stack.postgres if name == "direct" else stack.pgbouncer
    with Sender(pooler, DATABASE) as sender:
        first, = sender.insert([f"{tag}-nobody"])
        with Swarm(odoo, DATABASE, clients, lambda index: [f"{tag}-{index}", tag], last=first) as swarm:
            swarm.settle(60)
            now = memory(odoo.evented_pid)
            yield Result("growth", case, name, "memory", "MiB", now)
            yield Result("growth", case, name, "memory per client", "KiB", (now - before) * 1024 / clients)
            yield Result("growth", case, name, f"to open one of them, {AT_ONCE} at once", "ms",
                         statistics.median(swarm.opening) * 1000)
            if name == "addon":
                yield from few_caught_up(stack, case, name, swarm, sender)
                yield from caught_up(stack, case, name, swarm, sender, tag)


def terminate(stack):
    stack.postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                         " WHERE application_name LIKE 'bus_alt_connection bus%'")


def few_caught_up(stack, case, name, swarm, sender):
    """One client in a hundred misses something: when they have it."""
    some = swarm.clients[::100]
    missed = dict(zip(some, sender.insert([client.channels[0] for client in some]), strict=True))
    began = time.monotonic()
    terminate(stack)
    wait_until(lambda: all(client.last >= number for client, number in missed.items()), PATIENCE,
               "what was missed does not come")
    times = [at - began for client, number in missed.items() for entry, at in client.received if entry == number]
    yield Result("growth", case, name, "catch-up, if one in a hundred missed something", "s", max(times))
    wait_healthy(swarm.odoo, PATIENCE)


def caught_up(stack, case, name, swarm, sender, tag):
    """Terminate the listening backend and watch."""
    missed, = sender.insert([tag])
    with Watch(stack, swarm) as watch:
        began = time.monotonic()
        terminate(stack)
        served = swarm.wait(missed, PATIENCE)
    times = sorted(at - began for client in swarm.clients for entry, at in client.received if entry == missed)
    yield Result("growth", case, name, "not caught up", "", len(swarm.clients) - len(times))
    if served:
        yield Result("growth", case, name, "catch-up, median client", "s", statistics.median(times))
        yield Result("growth", case, name, "catch-up", "s", times[-1])
    yield Result("growth", case, name, "stall", "ms", max(watch.pings, default=0) * 1000)
    yield Result("growth", case, name, "connects meanwhile, longest", "ms", max(watch.opened, default=0) * 1000)
    yield Result("growth", case, name, "cut off by Odoo meanwhile", "", swarm.reopened + watch.cut)
    yield Result("growth", case, name, "server connections of the pooler, most", "", watch.servers)
    yield Result("growth", case, name, "waiting for the pooler, most", "", watch.waiting)


class Watch:
    """Pings, connects and asks the pooler until the block ends; both go on for a moment longer."""

    def __init__(self, stack, swarm):
        self.stack, self.swarm = stack, swarm
        self.pings, self.opened = [], []
        self.servers = self.waiting = self.cut = 0
        self.ending = threading.Event()

    def __enter__(self):
        # Websockets that get nothing. Odoo closes one that sends more than five frames a second, so many take turns.
        self.pingers, self.comer = (
            Swarm(self.swarm.odoo, DATABASE, count, lambda _: [f"nobody-{time.monotonic_ns()}"], last=1)
            for count in (PINGERS, 1))
        for swarm in (self.pingers, self.comer):
            swarm.__enter__()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self.ping, self.connect, self.ask)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self.ending.wait(0.5)
        self.ending.set()
        for thread in self.threads:
            thread.join(70)
        for swarm in (self.pingers, self.comer):
            swarm.__exit__(*exc)

    def ping(self):
        for client in itertools.cycle(self.pingers.clients):
            if self.ending.wait(EVERY):
                return
            self.measure(self.pings, self.pingers, client.ping)

    def connect(self):
        swarm = self.comer
        while not self.ending.wait(0.05):
            client = swarm.clients[0]
            client.closing = True
            swarm.loop.call_soon_threadsafe(client.transport.abort)
            client = swarm.clients[0] = type(client)(swarm, client.channels, client.last)
            self.measure(self.opened, swarm, client.open)

    def measure(self, times, swarm, coroutine):
        try:
            times.append(swarm.call(coroutine()))
        except TimeoutError:
            times.append(TIMEOUT)
        except OSError:
            self.cut += 1

    def ask(self):
        while not self.ending.wait(0.1):
            for row in self.stack.pgbouncer.show("POOLS"):
                if row["database"] == DATABASE:
                    self.servers = max(self.servers, int(row["sv_active"]))
                    self.waiting = max(self.waiting, int(row["cl_waiting"]))
