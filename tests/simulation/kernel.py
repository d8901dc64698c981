"""Virtual time: threads are greenlets, and a wait is an entry in a heap of what happens next.

Contract: one process, no sleep. All randomness comes from `Kernel.random`, and what happens at the same time happens in
the order in which it was arranged, so that a seed gives the same history on every machine. A thread runs until it
waits; where the kernel is told to preempt, also until it reads the clock.
"""
import random
from heapq import heappop, heappush

import greenlet


class Thread(greenlet.greenlet):
    """A thread of one process; `process` is any object, and dies or stands still with all its threads."""

    def __init__(self, kernel, target, name, process):
        super().__init__(self.guard, kernel.hub)
        self.kernel, self.target, self.name, self.process = kernel, target, name, process

    def guard(self, _value):
        try:
            self.target()
        except greenlet.GreenletExit:
            pass                        # the life is over
        except BaseException as exc:    # a defect of the model included
            self.kernel.failed(self, exc)
        self.kernel.threads.pop(self, None)


class Kernel:
    """Time, and what happens when.

    `now`: seconds. `preempt`: how often a thread that reads the clock has to wait for another, 0 to 1.
    `failed(thread, exception)` is called for a thread that ends with an exception.
    """

    def __init__(self, seed, preempt=0.0):
        self.random = random.Random(seed)
        self._draw = self.random.random
        self.now, self.preempt = 1000.0, preempt
        self.hub = greenlet.getcurrent()
        self.threads = {}
        self.standing = {}      # process -> until when none of its threads runs
        self.over = False
        self._killed = []
        self._heap, self._count = [], 0

    # -- what happens next -----------------------------------------------------------------------------------------

    def at(self, delay, call, *args):
        """Call `call` so many seconds from now. Returns what `cancel` takes."""
        self._count = count = self._count + 1
        entry = [self.now + delay, count, call, args]
        heappush(self._heap, entry)
        return entry

    @staticmethod
    def cancel(entry):
        entry[2] = None

    def run(self, until):
        """Let time pass until then."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, call, args = heappop(heap)
            if call is not None:
                call(*args)
        self.now = until

    # -- threads ---------------------------------------------------------------------------------------------------

    def spawn(self, target, name, process=None):
        """Start a thread, of the process of the one that calls if none is given."""
        if self.over:
            return
        thread = Thread(self, target, name, process or getattr(greenlet.getcurrent(), "process", None))
        self.threads[thread] = None
        self.at(self._draw() * 0.0005, self._resume, thread, None)

    def _resume(self, thread, value):
        if thread not in self.threads:
            return                      # killed
        if self.standing and self.standing.get(thread.process, 0.0) > self.now:
            self.at(self.standing[thread.process] - self.now, self._resume, thread, value)
        else:
            thread.switch(value)

    def wait(self, waiting, seconds=None):
        """Have the current thread wait until `wake` is called with the entry that this appends to `waiting`.

        Returns False after so many seconds without that."""
        if self.over:
            raise greenlet.GreenletExit
        entry = [greenlet.getcurrent(), None, waiting]
        if seconds is not None:
            entry[1] = self.at(max(0.0, seconds), self._expire, entry)
        waiting.append(entry)
        return self.hub.switch()

    def _expire(self, entry):
        entry[2].remove(entry)
        self._resume(entry[0], False)

    def wake(self, waiting):
        """Wake all that wait there."""
        while waiting:
            self.wake_one(waiting)

    def wake_one(self, waiting):
        thread, timer, _ = waiting.pop(0)
        if timer is not None:
            self.cancel(timer)
        self.at(self._draw() * 0.0005, self._resume, thread, True)

    def kill(self, process):
        """End a process as SIGKILL does: none of its threads runs any more."""
        for thread in [thread for thread in self.threads if thread.process is process]:
            del self.threads[thread]
            self._killed.append(thread)

    def end(self):
        """End all threads; whatever they do on their way out has no effect."""
        self.over = True
        for thread in [*self.threads, *self._killed]:
            if thread:
                thread.throw(greenlet.GreenletExit)
        self.threads.clear()
        self._heap.clear()

    # -- what `runtime` has of it ----------------------------------------------------------------------------------

    def monotonic(self):
        if self.preempt and self._draw() < self.preempt and greenlet.getcurrent() is not self.hub:
            self.sleep(self._draw() * 0.003)
        return self.now

    def sleep(self, seconds):
        self.wait([], seconds)

    def event(self):
        return Event(self)

    def lock(self):
        return Lock(self)

    def start_thread(self, target, name):
        self.spawn(target, name)


class Event:
    """threading.Event"""

    def __init__(self, kernel):
        self._kernel, self._flag, self._waiting = kernel, False, []

    def is_set(self):
        return self._flag

    def set(self):
        self._flag = True
        self._kernel.wake(self._waiting)

    def clear(self):
        self._flag = False

    def wait(self, timeout=None):
        if not self._flag:
            self._kernel.wait(self._waiting, timeout)
        return self._flag


class Lock:
    """threading.Lock"""

    def __init__(self, kernel):
        self._kernel, self._held, self._waiting = kernel, False, []

    def acquire(self, blocking=True, timeout=-1):
        deadline = None if timeout < 0 else self._kernel.now + timeout
        while self._held:
            left = None if deadline is None else deadline - self._kernel.now
            if not blocking or (left is not None and left <= 0) or not self._kernel.wait(self._waiting, left):
                return False
        self._held = True
        return True

    def release(self):
        self._held = False
        if self._waiting:
            self._kernel.wake_one(self._waiting)

    def locked(self):
        return self._held

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, *exc):
        self.release()
