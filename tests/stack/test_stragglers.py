"""A transaction that makes its row, and commits long after later rows were delivered: its clients get it at once, once.

As where a COMMIT waits for a synchronous standby or a full disk. Upstream, from series 16 on, never looks for it again
once 10 s have passed; before, the browser itself asks for what is above its last id only. Takes 2 min.
"""
import time

import pytest

from bench.clients import Sender as CheapSender
from bench.clients import Swarm
from bench.setups import cpu
from stack.clients.client import Sender, compact
from stack.clients.listeners import wait_listening
from stack.clients.state import pass_seconds, wait_healthy

pytestmark = pytest.mark.needs("websocket")

LATE = (15, 40)     # seconds
AT_ONCE = 5.0       # seconds; it is some hundredths
EVERY = 0.5


@pytest.mark.parametrize("shape, workers", [
    ("its own", 2), pytest.param("20", 0, marks=pytest.mark.needs("shape_of_20"))],
    ids=["its own", "shape of 20"])
def test_it_arrives_at_once_and_once(request, stack, bus, shape, workers):
    start = request.getfixturevalue("twenty" if shape == "20" else "odoo")
    server = start(workers=workers)
    client, sender = bus(server)
    wait_listening(stack.postgres, server, "bus")
    wait_healthy(server)
    late = {seconds: straggler(stack, sender) for seconds in LATE}
    began, numbers = time.monotonic(), []
    for seconds, (transaction, _) in late.items():
        while time.monotonic() - began < seconds:
            numbers.append(sender.send_sql("in time"))
            pass_seconds(EVERY)
        transaction.connection.commit()
        event = time.monotonic()
        sender.notify(compact([sender.wire_channel]))
        arrived = awaited(client, "late", event)
        assert arrived, f"a row that was committed {seconds} s late did not come within {AT_ONCE} s"
        late[seconds] = transaction, arrived
    # what comes next is what could be given twice
    for _ in range(10):
        numbers.append(sender.send_sql("in time"))
        pass_seconds(EVERY)
    assert client.opened == 1, "it had to connect again, and may lack what it did not see"
    received = [n.id for n in client.received]
    assert len(received) == len(set(received)), "something came twice"
    assert set(numbers) <= set(received)
    assert len([n for n in client.received if n.payload == "late"]) == len(LATE)


def straggler(stack, sender):
    """A transaction that has made its row and is not committed."""
    transaction = Sender(sender.session, stack.postgres, sender.channel)
    transaction.connection = stack.postgres.connect("demo", user="odoo")
    transaction.connection.autocommit = False
    return transaction, transaction.insert("late")


def awaited(client, payload, event):
    deadline = time.monotonic() + AT_ONCE
    while time.monotonic() < deadline:
        found = client.next(timeout=max(0.0, deadline - time.monotonic()))
        if found and found.payload == payload and found.at > event - 0.001:
            return found
    return None


WATCHERS = 10       # clients of one channel, of each Odoo
HOT = 0.05          # seconds between messages on it
FILL, MEASURED = 60, 60     # seconds: until what is remembered is, and that is looked at
MORE = 1.2          # times an Odoo without this addon; all that came in 90 s would cost more


@pytest.mark.alone      # measures the CPU time of two processes
@pytest.mark.newest
@pytest.mark.timeout(600)
def test_a_hot_channel_costs_little_more(stack, odoo, record_property):
    """Whatever is remembered of each client is looked at for each message: that must not be felt."""
    plain, ours = odoo(workers=1, pooled=False, load="base,web"), odoo(workers=1)
    channel, looked = f"hot-{time.monotonic_ns()}", []
    with CheapSender(stack.pgbouncer, "demo") as sender:
        last, = sender.insert([channel])
        payload = f"[{sender.wire(channel)}]"
        with Swarm(plain, "demo", WATCHERS, lambda _: [channel], last) as few, \
                Swarm(ours, "demo", WATCHERS, lambda _: [channel], last) as others:
            wait_listening(stack.postgres, ours, "bus")
            wait_healthy(ours)
            began, number = time.monotonic(), 0
            for seconds in (FILL, FILL + MEASURED):
                while time.monotonic() - began < seconds:
                    last, = sender.insert([channel])
                    sender.notify([payload])
                    number += 1
                    time.sleep(max(0.0, began + number * HOT - time.monotonic()))   # the pace that is measured
                looked.append([cpu(server.evented_pid) for server in (plain, ours)])
            assert few.wait(last, 20) and others.wait(last, 20)
            assert few.arrived == others.arrived == number * WATCHERS, "lost, or twice"
    without, with_it = (after - before for before, after in zip(*looked, strict=True))
    record_property("CPU, times that without this addon", round(with_it / without, 3))
    print(f"a hot channel: {with_it:.1f} s of CPU with the addon, {without:.1f} s without: {with_it / without:.3f}")
    assert with_it < MORE * without
