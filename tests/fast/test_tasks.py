"""Coroutines that run side by side in one thread: what they await is a socket, a time or a signal."""
import os
import socket
import threading
import time

import pytest
from bus_alt_connection.tasks import READ, WRITE, Signal, Tasks, ready, sleep

from bus_alt_connection import tasks as module

SHORT = 0.02        # seconds that something takes
LONG = 60.0         # seconds that nothing takes: whoever waits for it is woken by something else


@pytest.fixture
def tasks():
    tasks = Tasks()
    yield tasks
    tasks.close()


@pytest.fixture
def pair():
    """Two sockets: what is sent on the second can be read from the first."""
    reader, writer = socket.socketpair()
    yield reader, writer
    reader.close()
    writer.close()


@pytest.fixture
def seen():
    """What the coroutines of a test did, in order."""
    return []


def elapsed(function):
    begun = time.monotonic()
    function()
    return time.monotonic() - begun


# -- run ---------------------------------------------------------------------------------------------------------------

def test_the_result_of_a_coroutine(tasks):
    async def answer():
        await sleep(0)
        return 42
    assert tasks.run(answer()) == 42


def test_its_exception(tasks):
    async def fail():
        await sleep(0)
        raise KeyError("this")
    with pytest.raises(KeyError, match="this"):
        tasks.run(fail())
    with pytest.raises(KeyError, match="this"):
        tasks.run(fail())       # once more: nothing is left of the first


def test_one_that_waits_for_nothing(tasks):
    async def at_once():
        return 1
    assert tasks.run(at_once()) == 1


# -- a time ------------------------------------------------------------------------------------------------------------

def test_sleep(tasks):
    assert SHORT <= elapsed(lambda: tasks.run(sleep(SHORT))) < LONG


def test_the_one_that_sleeps_less_goes_on_first(tasks, seen):
    async def nap(seconds):
        await sleep(seconds)
        seen.append(seconds)

    async def main():
        for seconds in (3 * SHORT, SHORT, 2 * SHORT):
            tasks.start(nap(seconds))
        await sleep(4 * SHORT)
    tasks.run(main())
    assert seen == [SHORT, 2 * SHORT, 3 * SHORT]


def test_of_those_that_sleep_equally_long_the_first_goes_on_first(tasks, seen, monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now
    monkeypatch.setattr(module, "time", Clock())

    async def nap(number):
        await sleep(5)
        seen.append(number)

    async def main():
        for number in range(10):
            tasks.start(nap(number))
        module.time.now = 6.0
        await sleep(0)
    tasks.run(main())
    assert seen == list(range(10))


# -- a socket ----------------------------------------------------------------------------------------------------------

def test_a_socket_that_is_ready(tasks, pair):
    reader, writer = pair

    async def main():
        assert await ready(writer.fileno(), WRITE, LONG)
        writer.send(b".")
        assert await ready(reader.fileno(), READ, LONG)
        return reader.recv(1)
    assert tasks.run(main()) == b"."


def test_a_socket_that_becomes_ready(tasks, pair, seen):
    reader, writer = pair

    async def listen():
        seen.append(await ready(reader.fileno(), READ, LONG))

    async def main():
        listening = tasks.start(listen())
        await sleep(0)
        assert not seen
        writer.send(b".")
        while not listening.done:
            await sleep(SHORT)
    tasks.run(main())
    assert seen == [True]


def test_a_socket_that_is_not_ready_in_time(tasks, pair):
    async def main():
        return [await ready(pair[0].fileno(), READ, seconds) for seconds in (SHORT, 0, -1)]
    assert tasks.run(main()) == [False] * 3


def test_a_socket_that_is_watched(tasks, pair, seen):
    """All the time, whoever else waits, until it is not any more; what is not read calls again."""
    reader, writer = pair
    called = Signal()

    def read():
        seen.append(reader.recv(1))
        called.set()

    async def main():
        tasks.watch(reader.fileno(), read)
        for letter in (b"a", b"b", b"cd"):
            writer.send(letter)
            assert await called.wait(LONG)
        while len(seen) < 4:
            await called.wait(LONG)
        tasks.unwatch(reader.fileno())
        writer.send(b"e")
        await sleep(SHORT)
    tasks.run(main())
    assert seen == [b"a", b"b", b"c", b"d"]
    assert tasks.run(ready(reader.fileno(), READ, LONG))        # it can be waited for again


def test_one_that_is_watched_and_closed_is_forgotten(tasks, seen):
    """Another socket has its number afterwards, and is heard."""
    async def main():
        for letter in (b"a", b"b"):
            reader, writer = socket.socketpair()
            tasks.watch(reader.fileno(), lambda reader=reader: seen.append(reader.recv(1)))
            writer.send(letter)
            await sleep(SHORT)
            tasks.unwatch(reader.fileno())
            reader.close()
            writer.close()
    tasks.run(main())
    assert seen == [b"a", b"b"]


def test_a_socket_may_be_waited_for_again_and_by_another(tasks, pair):
    reader, writer = pair

    async def listen(timeout):
        return await ready(reader.fileno(), READ, timeout)

    async def main():
        assert not await listen(SHORT)
        other = tasks.start(listen(LONG))
        await sleep(0)
        other.cancel()
        writer.send(b".")
        return await listen(LONG)
    assert tasks.run(main()) is True


# -- a signal ----------------------------------------------------------------------------------------------------------

def test_a_signal_wakes_all_that_wait(tasks, seen):
    signal = Signal()

    async def wait(number):
        seen.append((number, await signal.wait(LONG)))

    async def main():
        for number in range(3):
            tasks.start(wait(number))
        signal.set()
        await sleep(0)
    tasks.run(main())
    assert seen == [(0, True), (1, True), (2, True)]


def test_a_signal_that_does_not_come_in_time(tasks):
    signal = Signal()
    assert tasks.run(signal.wait(SHORT)) is False
    assert not signal.waiting


def test_a_signal_is_not_remembered(tasks):
    """Whoever waits looks first at what it waits for."""
    signal = Signal()
    signal.set()
    assert tasks.run(signal.wait(0)) is False


def test_a_signal_twice_wakes_once(tasks, seen):
    signal = Signal()

    async def wait():
        for _ in range(2):
            seen.append(await signal.wait(SHORT))

    async def main():
        waiting = tasks.start(wait())
        signal.set()
        signal.set()
        while not waiting.done:
            await sleep(SHORT)
    tasks.run(main())
    assert seen == [True, False]


# -- several at a time -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("at_most", [1, 3, 8, 100])
def test_each_with_a_limit(tasks, seen, at_most):
    at_work = []

    async def work(item):
        at_work.append(item)
        seen.append(len(at_work))
        await sleep(0.001)
        at_work.remove(item)
    tasks.run(tasks.each(work, range(20), at_most))
    assert len(seen) == 20 and not at_work
    assert max(seen) == min(at_most, 20)


def test_each_of_nothing(tasks):
    tasks.run(tasks.each(None, [], 8))


def test_each_is_begun_in_order(tasks, seen):
    async def work(item):
        seen.append(item)
        await sleep(0)
    tasks.run(tasks.each(work, "abcdef", 2))
    assert seen == list("abcdef")


def test_one_that_is_slow_holds_up_nobody(tasks, seen):
    last = Signal()

    async def work(item):
        await (last.wait(LONG) if item == 0 else sleep(0))
        seen.append(item)
        if item == 9:
            last.set()
    tasks.run(tasks.each(work, range(10), 2))
    assert seen == [*range(1, 10), 0]


def test_each_that_waits_for_nothing(tasks, seen):
    async def work(item):
        seen.append(item)
    tasks.run(tasks.each(work, range(5), 2))
    assert seen == [0, 1, 2, 3, 4]


def test_one_of_each_that_fails(tasks, seen):
    """Who awaits them all learns of it, after the others have ended."""
    async def work(item):
        await sleep(SHORT)
        if item == 1:
            raise KeyError(item)
        seen.append(item)

    async def all_of_them():
        with pytest.raises(KeyError, match="1"):
            await tasks.each(work, range(6), 2)
        seen.append("all")
    tasks.run(all_of_them())
    assert seen == [0, 2, 3, 4, 5, "all"]


# -- started beside ----------------------------------------------------------------------------------------------------

def test_one_that_is_started_runs_until_it_waits(tasks, seen):
    async def child():
        seen.append("child")
        await sleep(0)
        seen.append("child again")

    async def main():
        tasks.start(child())
        seen.append("parent")
        await sleep(SHORT)
    tasks.run(main())
    assert seen == ["child", "parent", "child again"]


def test_an_exception_of_one_that_was_started_ends_the_run(tasks, seen):
    async def fail():
        await sleep(0)
        raise KeyError("child")

    async def main():
        tasks.start(fail())
        try:
            await sleep(LONG)
        finally:
            seen.append("ended")
    with pytest.raises(KeyError, match="child"):
        tasks.run(main())
    assert seen == ["ended"]


def test_one_that_is_started_goes_on_in_the_next_run(tasks, seen):
    async def child():
        for number in range(3):
            seen.append(number)
            await sleep(0)

    async def main():
        await sleep(0)
    tasks.start(child())
    for _ in range(4):
        tasks.run(main())
    assert seen == [0, 1, 2]


# -- cancel ------------------------------------------------------------------------------------------------------------

def waits_of_all_kinds(fileno, signal):
    return [lambda: sleep(LONG), lambda: ready(fileno, READ, LONG), lambda: signal.wait(LONG)]


@pytest.mark.parametrize("kind", range(3))
def test_cancel_runs_finally_where_it_waits(tasks, pair, seen, kind):
    signal = Signal()
    wait = waits_of_all_kinds(pair[0].fileno(), signal)[kind]

    async def child():
        try:
            await wait()
            seen.append("went on")
        finally:
            seen.append("ended")

    async def main():
        child_task = tasks.start(child())
        await sleep(0)
        child_task.cancel()
        assert seen == ["ended"] and child_task.done
        signal.set()
        pair[1].send(b".")
        await sleep(SHORT)
    tasks.run(main())
    assert seen == ["ended"]
    assert not signal.waiting


def test_cancel_of_one_that_was_just_woken(tasks, seen):
    signal = Signal()

    async def child():
        try:
            await signal.wait(LONG)
            seen.append("went on")
        finally:
            seen.append("ended")

    async def main():
        child_task = tasks.start(child())
        signal.set()
        child_task.cancel()
        await sleep(0)
    tasks.run(main())
    assert seen == ["ended"]


def test_the_end_of_a_run_ends_what_it_ran(tasks, seen):
    async def main():
        try:
            await sleep(LONG)
        finally:
            seen.append("ended")
    tasks.stop()
    assert tasks.run(main()) is None
    assert seen == ["ended"]


def test_close_ends_what_is_left(seen):
    tasks = Tasks()

    async def child(name):
        try:
            await sleep(LONG)
        finally:
            seen.append(name)
    children = [tasks.start(child("one")), tasks.start(child("another"))]
    tasks.close()
    assert sorted(seen) == ["another", "one"] and all(task.done for task in children)


def test_close_ends_what_was_woken_and_did_not_go_on(seen):
    """One that fails keeps the others that were woken with it from going on."""
    tasks, signal = Tasks(), Signal()

    async def child(name):
        try:
            await signal.wait(LONG)
            raise KeyError(name)
        finally:
            seen.append(name)

    async def main():
        signal.set()
        await sleep(LONG)
    children = [tasks.start(child(name)) for name in ("one", "another")]
    with pytest.raises(KeyError, match="one"):
        tasks.run(main())
    tasks.close()
    assert seen == ["one", "another"] and all(task.done for task in children)


def test_close_leaves_no_open_file():
    before = set(os.listdir("/proc/self/fd"))
    tasks = Tasks()
    assert len(os.listdir("/proc/self/fd")) > len(before)
    tasks.close()
    assert set(os.listdir("/proc/self/fd")) == before


# -- from other threads ------------------------------------------------------------------------------------------------

class Thread(threading.Thread):
    """Runs a coroutine until it ends; in the block it has begun, and after the block it has ended."""

    def __init__(self, tasks, coroutine):
        super().__init__(daemon=True)
        self.tasks, self.coroutine = tasks, coroutine
        self.begun = threading.Event()

    def run(self):
        async def main():
            self.begun.set()
            return await self.coroutine
        self.result = self.tasks.run(main())

    def __enter__(self):
        self.start()
        assert self.begun.wait(LONG)
        return self

    def __exit__(self, *exc):
        self.join(LONG)
        assert not self.is_alive()


def test_stop_from_another_thread(tasks, seen):
    async def main():
        try:
            await sleep(LONG)
        finally:
            seen.append("ended")
    with Thread(tasks, main()) as thread:
        tasks.stop()
    assert thread.result is None
    assert seen == ["ended"]


def test_call_from_another_thread(tasks, seen):
    signal = Signal()

    def function():
        seen.append(threading.current_thread())
        signal.set()
    with Thread(tasks, signal.wait(LONG)) as thread:
        tasks.call(function)
    assert thread.result is True
    assert seen == [thread]


def test_many_calls_from_many_threads(tasks, seen):
    done = Signal()

    def append(number):
        seen.append(number)
        if len(seen) == 4000:
            done.set()

    def caller(first):
        for number in range(first, first + 1000):
            tasks.call(lambda number=number: append(number))
    with Thread(tasks, done.wait(LONG)):
        callers = [threading.Thread(target=caller, args=(first,)) for first in range(0, 4000, 1000)]
        for each in callers:
            each.start()
        for each in callers:
            each.join()
    assert sorted(seen) == list(range(4000))
    for first in range(0, 4000, 1000):      # those of one thread in its order
        assert [number for number in seen if first <= number < first + 1000] == list(range(first, first + 1000))


def test_after_a_call_it_rests(tasks):
    for _ in range(100):
        tasks.call(lambda: None)
    tasks.run(sleep(SHORT))
    used = time.thread_time()
    tasks.run(sleep(5 * SHORT))
    assert time.thread_time() - used < SHORT


def test_a_call_before_the_run_is_made_in_it(tasks, seen):
    tasks.call(lambda: seen.append("called"))
    tasks.run(sleep(SHORT))
    assert seen == ["called"]


def test_call_and_stop_after_the_end_do_nothing():
    tasks = Tasks()
    tasks.close()
    tasks.call(lambda: None)
    tasks.stop()
