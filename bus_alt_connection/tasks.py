# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Runs coroutines side by side in one thread: what they await is a socket, a time or a signal.

Contract: a listener has one thread, whatever goes on at the same time. asyncio is not used because
Odoo's evented process runs everything in one thread under gevent, and asyncio's running loop is a
property of the thread: other code there would find ours. Here a wait is one ``select`` of the
standard library, or of ``hub_selector`` where gevent replaces that.
"""

import collections
import functools
import heapq
import itertools
import selectors
import socket
import time
import types
from typing import Any, Awaitable, Callable, Iterable, List, Optional, Set

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

# What a coroutine waits for: a file descriptor and READ or WRITE, or a Signal; at most until
# `deadline` (time.monotonic()).
Wait = collections.namedtuple("Wait", "fileno event signal deadline")


@types.coroutine
def ready(fileno: int, event: int, timeout: float) -> Any:
    """:return: True once the file descriptor is ready, False after `timeout` seconds"""
    return (yield Wait(fileno, event, None, time.monotonic() + timeout))


@types.coroutine
def sleep(seconds: float) -> Any:
    """Let the other coroutines run for so long."""
    yield Wait(None, 0, None, time.monotonic() + seconds)


class Signal:
    """Wakes the coroutines that wait for it."""

    def __init__(self) -> None:
        self.waiting: List[Task] = []

    @types.coroutine
    def wait(self, timeout: float) -> Any:
        """:return: True once it is set, False after `timeout` seconds"""
        return (yield Wait(None, 0, self, time.monotonic() + timeout))

    def set(self) -> None:
        for task in list(self.waiting):
            task.wake(True)


class Task:
    """One coroutine that runs."""

    def __init__(self, tasks: "Tasks", coroutine: Any) -> None:
        self.done = False
        self.result: Any = None
        self._tasks, self._coroutine = tasks, coroutine
        self.wait: Optional[Wait] = None

    def wake(self, value: Any) -> None:
        """Go on with this as the result of the wait."""
        if self.wait is not None:
            self._tasks.forget(self)
            self.wait = None
            self._tasks.runnable.append((self, value))

    def cancel(self) -> None:
        """End it where it waits; its ``finally`` blocks run."""
        if self.wait is not None:
            self._tasks.forget(self)
            self.wait = None
        self.done = True
        self._coroutine.close()

    def step(self, value: Any) -> None:
        if self.done:
            return
        try:
            self.wait = self._coroutine.send(value)
        except StopIteration as stop:
            self.done, self.result = True, stop.value
            return
        except BaseException:
            self.done = True
            raise
        self._tasks.register(self)


def _selector() -> Any:
    if selectors.DefaultSelector.__module__ == "gevent.selectors":  # from gevent 20.6 on
        from .hub_selector import HubSelector

        return HubSelector()
    return selectors.DefaultSelector()


class Tasks:
    """The coroutines of one thread. Only ``call`` and ``stop`` may be used from another."""

    def __init__(self) -> None:
        self.runnable: Any = collections.deque()
        self._selector = _selector()
        try:
            self._reader, self._writer = socket.socketpair()
        except OSError:
            self._selector.close()
            raise
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._selector.register(self._reader.fileno(), READ, self._called)
        self._calls: Any = collections.deque()
        self._timers: List[Any] = []
        self._waiting: Set[Task] = set()
        self._count = itertools.count()
        self._stopped = False

    def start(self, coroutine: Any) -> Task:
        task = Task(self, coroutine)
        task.step(None)
        return task

    def run(self, coroutine: Any) -> Any:
        """Run until this coroutine ends.

        :return: its result, or None after ``stop``
        :raises Exception: what the coroutine, or one that was started beside it, raises
        """
        task = self.start(coroutine)
        try:
            while not (task.done or self._stopped):
                self._turn()
            return task.result
        finally:
            if not task.done:
                task.cancel()

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called in the thread that runs; from any thread."""
        self._calls.append(function)
        try:
            self._writer.send(b".")
        except OSError:
            pass  # closed, or enough bytes wait to be read

    def watch(self, fileno: int, function: Callable[[], None]) -> None:
        """Have a function called whenever there is something to read, until ``unwatch``.

        For what is read all the time: nothing is registered anew each time, as for ``ready``, and
        no coroutine is woken.
        """
        self._selector.register(fileno, READ, function)

    def unwatch(self, fileno: int) -> None:
        """To be called before the file descriptor can be another's."""
        self._selector.unregister(fileno)

    def stop(self) -> None:
        """End ``run``; from any thread."""
        self._stopped = True
        self.call(lambda: None)

    def close(self) -> None:
        # What was woken may not have gone on: one that was woken with it may have failed.
        for task in [*self._waiting, *(task for task, _ in self.runnable)]:
            task.cancel()
        for resource in (self._selector, self._reader, self._writer):
            resource.close()

    async def each(
        self, function: Callable[[Any], Awaitable], items: Iterable, at_most: int
    ) -> None:
        """Await ``function(item)`` for all items, a limited number of them at a time.

        :raises Exception: the first that one of them raises, after the others have ended
        """
        left = collections.deque(items)
        failed: List[Exception] = []
        finished = Signal()

        async def work() -> None:
            while left:
                try:
                    await function(left.popleft())
                except Exception as exc:  # any: it belongs to who awaits `each`, not to `run`
                    failed.append(exc)
            finished.set()

        workers: List[Task] = []
        try:
            for _ in range(min(at_most, len(left))):
                workers.append(self.start(work()))
            while not all(worker.done for worker in workers):
                await finished.wait(3600)
                await sleep(0)  # the one that finished is done a moment later
        finally:
            for worker in workers:
                if not worker.done:
                    worker.cancel()
        if failed:
            raise failed[0]

    # -- for Task -----------------------------------------------------------------------------

    def register(self, task: Task) -> None:
        wait = task.wait
        assert wait is not None
        self._waiting.add(task)
        heapq.heappush(self._timers, (wait.deadline, next(self._count), task, wait))
        if wait.signal is not None:
            wait.signal.waiting.append(task)
        if wait.fileno is not None:
            self._selector.register(wait.fileno, wait.event, functools.partial(task.wake, True))

    def forget(self, task: Task) -> None:
        wait = task.wait
        assert wait is not None
        self._waiting.discard(task)
        if wait.signal is not None:
            wait.signal.waiting.remove(task)
        if wait.fileno is not None:
            self._selector.unregister(wait.fileno)

    # -----------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Wait until something can go on, and let it."""
        now = time.monotonic()
        while self._timers:
            deadline, _, task, wait = self._timers[0]
            if task.wait is wait and deadline > now:
                break
            heapq.heappop(self._timers)
            if task.wait is wait:
                task.wake(False)
        if not self.runnable:
            timeout = self._timers[0][0] - now if self._timers else 3600
            for key, _ in self._selector.select(max(timeout, 0)):
                key.data()
        while self.runnable:
            task, value = self.runnable.popleft()
            task.step(value)

    def _called(self) -> None:
        try:
            while len(self._reader.recv(64)) == 64:
                pass
        except OSError:
            pass  # drained
        while self._calls:
            self._calls.popleft()()
