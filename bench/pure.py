"""A micro-benchmark of what a notification goes through in the addon, without a server.

Run by itself it prints its figures, one a line: `python -m bench.pure [gevent]`, the latter as in the evented process.
"""
import json
import socket
import subprocess
import sys
import time
import timeit

from stack.addon import importable
from stack.machine import REPO

from .report import Result

SUBSCRIBED = 5000
FOREIGN = '[["tenant17","res.partner",1234]]'
OWN = '[["demo","res.partner",1234]]'
REPEATED = 5        # the least counts: other work on the machine makes a time longer and never shorter


def run(stack, measure, quick):
    for where, args in (("", []), (", evented", ["gevent"])):
        command = [sys.executable, "-m", "bench.pure", "quick" if quick else "full", *args]
        done = subprocess.run(command, check=True, cwd=REPO, stdout=subprocess.PIPE, text=True)
        for line in done.stdout.splitlines():
            part, _, value = line.rpartition(" ")
            yield Result(measure, part + where, "addon", "pure parts", "µs", float(value))


def measured(number):
    """{part: seconds} of each."""
    from bus_alt_connection.loop_connection import LoopConnection
    from bus_alt_connection.payloads import accept
    from bus_alt_connection.tasks import Tasks, sleep
    subscribed = {("demo", "res.partner", index): {1} for index in range(SUBSCRIBED)}
    connection = LoopConnection(on_close=lambda: None)

    def passed_on():
        connection.deliver("imbus", OWN)
        connection.poll()
        del connection.notifies[:]

    def waits(count):
        """Something arrives, is read, and the next arrives."""
        tasks, (reader, writer), left = Tasks(), socket.socketpair(), [count]

        def arrived():
            reader.recv(1)
            left[0] -= 1
            writer.send(b".") if left[0] else tasks.stop()
        tasks.watch(reader.fileno(), arrived)
        writer.send(b".")
        began = time.perf_counter()
        tasks.run(sleep(3600))
        took = time.perf_counter() - began
        tasks.close()
        return took

    def least(function):
        return min(timeit.repeat(function, number=number, repeat=REPEATED)) / number
    found = {"json.loads of a payload": least(lambda: json.loads(FOREIGN)),
             "to accept a foreign payload": least(lambda: accept([FOREIGN], subscribed, False)),
             "to accept one of its own": least(lambda: accept([OWN], subscribed, False)),
             "to hand it to Odoo's loop": least(passed_on),
             "to wait for the next": min(waits(number) for _ in range(REPEATED)) / number}
    connection.close()
    return found


if __name__ == "__main__":
    if "gevent" in sys.argv:
        import gevent.monkey
        gevent.monkey.patch_all()
    importable()
    for name, seconds in measured(200 if "quick" in sys.argv else 20000).items():
        print(name, f"{seconds * 1e6:.3f}")
