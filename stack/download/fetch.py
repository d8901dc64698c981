"""All that a command needs from the cache, fetched at the same time, before the command starts.

Contract: `fetch(cache, names)` returns when each thing of THINGS with one of these names is there, or raises StackError
with the reason of the first that cannot be had. What only a part of the tests needs may be missing: they skip, and say
so. One process for each thing, so that an interrupt reaches it wherever it is; when `fetch` ends, in whichever way,
none of them runs.
"""
import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback

from ..base import INTERRUPTS, StackError, Unavailable, interrupt_once, say
from .cache import Cache, Missing
from .programs import chromium, haproxy, patroni, programs, prometheus
from .python import GROUPS, QUEUE_JOB, packages, published, queue_job
from .source import PACKAGES, find_odoo

# what takes longest goes first
THINGS = {
    **{f"odoo-{series}": functools.partial(find_odoo, python=sys.executable, series=series)
       for series in sorted(PACKAGES)},
    "chromium": chromium,
    **{f"packages-{group}": functools.partial(packages, group=group) for group in GROUPS},
    "programs": programs,
    "published-19": functools.partial(published, series=19),
    **{f"queue-job-{series}": functools.partial(queue_job, series=series) for series in QUEUE_JOB},
    "haproxy": haproxy,
    "patroni": patroni,
    "prometheus": prometheus,
}
FAILED, INTERRUPTED = 2, 130


def fetch(cache, names, optional=()):
    """`optional`: those of the names without which the command goes on."""
    missing = [name for name in THINGS if name in names and not is_there(cache, name)]
    if not missing:
        return
    cache.open()
    began = time.monotonic()
    say(f"fetching into {cache.folder}: {', '.join(missing)} (the first time)")
    handlers = {number: signal.signal(number, interrupt_once) for number in INTERRUPTS}
    children = {}
    try:
        for name in missing:
            children[name] = start(cache, name)
        left = dict(children)
        while left:
            multiprocessing.connection.wait([child.sentinel for child in left.values()])
            for name, child in list(left.items()):
                if child.exitcode is not None:
                    del left[name]
                    if child.exitcode and name not in optional:
                        raise StackError(f"{name} could not be fetched: the reason is above")
                    say(f"{name}: {'not there' if child.exitcode else 'ready'} ({time.monotonic() - began:.0f} s)")
    finally:
        for child in children.values():
            if child.is_alive():
                child.terminate()
        for child in children.values():
            child.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def is_there(cache, name):
    try:
        THINGS[name](Cache(cache.folder, makes=False))
    except Missing:
        return False
    except Unavailable:
        return True         # nothing to fetch: who asks for it is told why
    return True


def start(cache, name):
    # an interrupt that arrives before the child can handle it waits until it can
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        child = multiprocessing.get_context("fork").Process(target=work, args=(cache, name, before))
        child.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return child


def work(cache, name, mask):
    """In a process of its own: fetch one thing and end."""
    code = FAILED
    try:
        for number in INTERRUPTS:
            signal.signal(number, interrupt_once)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        THINGS[name](cache)
        code = 0
    except StackError as exc:
        say(f"{name}: {exc}")
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
