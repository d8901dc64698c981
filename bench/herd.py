"""Many instances of the addon's listener on one PostgreSQL that restarts: the rush, for real and simulated."""
import math
import threading
import time
from pathlib import Path

from . import listeners, reconnect
from .report import Result
from .setups import DATABASE, cpu_of_all

AWAY = reconnect.AWAY
PATIENCE = 120
EVERY = 0.1         # seconds between looks
RUSH = 5            # seconds
NOTIFIED = 20       # a second
DIRECT, POOLED, SIMULATED = "to PostgreSQL", "to the pooler", "simulated"


def run(stack, measure, quick):
    count = 10 if quick else 300
    with (listeners.cluster(stack, count) as (postgres, pooler),
          listeners.listening(stack, postgres, pooler, "addon", count) as started):
        listeners.settle(postgres, pooler)
        yield from notified(measure, postgres, pooler, started, count, quick)
        rate = yield from restarted(measure, postgres, pooler, started, count)
    kind, longest = reconnect.backoff()
    for number in [count] if quick else [count, 1000, 10000, 100000]:
        # of very many the rush alone: the server is never without one that waits, and so takes `rate` a second
        until = reconnect.LONGEST if number <= 1000 else AWAY + RUSH
        attempts, back = reconnect.simulate(number, lambda: kind(longest), rate, until)
        took = nearly_all(back) - AWAY if number <= 1000 else 0.99 * number / rate
        case = f"{number} instances"
        yield Result(measure, case, SIMULATED, "99 % back", "s", took)
        yield Result(measure, case, SIMULATED, "connection attempts in a second, most", "", most_of(attempts))


def notified(measure, postgres, pooler, started, count, quick):
    """What PostgreSQL does for a NOTIFY that concerns nobody, in the database that all listen in, and in another."""
    case, number = f"{count} instances", 10 if quick else 200
    for metric, pids in (("open files of each listener", [each.pid for each in started]),
                         ("open files of a listener's backend", backends_listening(postgres))):
        yield Result(measure, case, "addon", metric, "", sum(map(open_files, pids)) / count)
    idle = None
    for where, database in (("", "postgres"), ("in the database that they listen in", "postgres"),
                            ("in another database", DATABASE)):
        connection = postgres.connect(database)
        before = listeners.Sample(postgres, pooler, started)
        for index in range(number):
            if where:
                connection.cursor().execute("SELECT pg_notify('imbus', %s)", [f'[["tenant{index}","a channel"]]'])
            time.sleep(1 / NOTIFIED)        # the rate that is asked for
        after = listeners.Sample(postgres, pooler, started)
        connection.close()
        used = {what: after.less(before, what) / (after.at - before.at) for what in ("server", "wakeups")}
        if not where:
            idle = used
            continue
        rate = number / (after.at - before.at)
        case = f"{count} instances, a NOTIFY {where}"
        yield Result(measure, case, "addon", "PostgreSQL's CPU for a NOTIFY", "ms",
                     max(0.0, used["server"] - idle["server"]) / rate * 1000)
        yield Result(measure, case, "addon", "wake-ups of PostgreSQL for a NOTIFY", "",
                     max(0.0, used["wakeups"] - idle["wakeups"]) / rate)


def backends_listening(postgres):
    return [pid for pid, in postgres.query(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'bus_alt_connection bus%'")]


def open_files(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def nearly_all(times):
    return sorted(times)[max(0, math.ceil(len(times) * 0.99) - 1)]


def most_of(attempts):
    """In any second from the first on in which the server answers."""
    return max((number for second, number in attempts.items() if second >= AWAY), default=0)


class Watch(threading.Thread):
    """Looks until `stop`: [(time, listeners, attempts to PostgreSQL, to the pooler)]."""

    def __init__(self, started):
        super().__init__(daemon=True)
        self.started, self.seen, self.ending = started, [], threading.Event()

    def run(self):
        while not self.ending.wait(EVERY):
            self.look()

    def look(self):
        self.seen.append((time.monotonic(), *map(sum, zip(*(each.said for each in self.started), strict=True))))
        return self.seen[-1]

    def stop(self):
        self.ending.set()
        self.join()


def restarted(measure, postgres, pooler, started, count):
    """PostgreSQL is away for some seconds. Returns how many it took in a second."""
    watch = Watch(started)
    watch.look()
    watch.start()
    try:
        postgres.stop()
        lost_at = time.monotonic()
        time.sleep(AWAY)        # the fault is that it lasts
        used = cpu_of_all(pooler.pid)
        postgres.start()
        up_at, deadline = time.monotonic(), time.monotonic() + PATIENCE
        while watch.look()[1] < math.ceil(0.99 * count) and time.monotonic() < deadline:
            time.sleep(EVERY / 2)       # a count of all that listen is not taken more often
        took = time.monotonic() - up_at
        server, used = cpu_of_all(postgres.pid), cpu_of_all(pooler.pid) - used
        time.sleep(2)       # the seconds after it, to be seen
    finally:
        watch.stop()
    case = f"{count} instances"
    yield Result(measure, case, "addon", "99 % back", "s", took)
    yield Result(measure, case, "addon", "PostgreSQL's CPU until then", "s", server)
    yield Result(measure, case, "addon", "the pooler's CPU until then", "s", used)
    for name, index in ((DIRECT, 2), (POOLED, 3)):
        seconds = each_second(watch.seen, index, up_at)
        for second, number in seconds.items():
            if second >= -math.ceil(up_at - lost_at):
                yield Result(measure, f"second {second + 1 if second >= 0 else second}", name,
                             "connection attempts in each second from the moment that PostgreSQL is up", "", number)
        yield Result(measure, case, name, "connection attempts in a second, most", "",
                     max(number for second, number in seconds.items() if second >= 0))
    return 0.99 * count / took


def each_second(seen, index, begin):
    """{second from `begin` on: what a count has grown by in it}"""
    grown = {}
    for before, after in zip(seen, seen[1:], strict=False):
        second = math.floor(after[0] - begin)
        grown[second] = grown.get(second, 0) + after[index] - before[index]
    return grown
