"""What a run says while it goes on and of what failed, and which test has the machine to itself: a plugin of pytest.

Contract:

* Once a minute the tests that run are printed, with how long each has been running.
* The report of a failed test has the end of the log of each server that was started or wrote to its log meanwhile.
* A test that exceeded its deadline (pytest-timeout, which shows the stacks of all threads) has the stacks of each Odoo
  as well, which writes them to its log when it is asked.
* While a test that is marked `alone` runs, no other does: it measures what a neighbour would disturb.
* Side by side run the modules (pytest-xdist), each with all its tests of one series together.
"""
import contextlib
import fcntl
import glob
import os
import re
import signal
import tempfile
import threading
import time

import pytest

from stack import StackError
from stack.process import PROGRAMS, children, wait_until
from stack.servers.odoo import Odoo

EVERY = 60          # seconds
LINES = 60          # of each log
SIZES = {}          # program: the size of its log when the test began


def pytest_configure(config):
    config.addinivalue_line("markers", "alone: no other test runs meanwhile; say in a comment what it measures")
    if not hasattr(config, "workerinput"):      # where several processes run tests, the one that controls them
        config.pluginmanager.register(Minutes(), "minutes")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Modules(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            # "test_bus.py::test_it[threaded-odoo19-fast]": what shares servers is the file and odoo19
            path, _, rest = nodeid.partition("::")
            return path, *re.findall(r"\[(?:.*-)?(odoo\d*)\b", rest)
    return Modules(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Tests take turns over two locked files: many that are not alone, or one that is."""
    run = getattr(item.config, "workerinput", {}).get("testrunuid")     # without pytest-xdist there are no others
    if not run:
        return (yield)
    name = os.path.join(tempfile.gettempdir(), f"bus-alt-tests-{run}")
    with open(f"{name}.next", "a") as next_one, open(f"{name}.turn", "a") as turn:
        # who waits to be alone holds the first, so that others cannot go before it again and again
        fcntl.flock(next_one, fcntl.LOCK_EX)
        fcntl.flock(turn, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(next_one, fcntl.LOCK_UN)
        return (yield)


def pytest_unconfigure(config):
    run = getattr(config, "workerinput", {}).get("testrunuid")
    for path in glob.glob(os.path.join(tempfile.gettempdir(), f"bus-alt-tests-{run}.*")):
        with contextlib.suppress(FileNotFoundError):    # the other process was quicker
            os.unlink(path)


class Minutes:
    """Prints what runs."""

    def __init__(self):
        self.running, self.done = {}, 0
        self.out = os.dup(1)        # what a test prints is caught, this is not
        self.began = time.monotonic()
        self.ended = threading.Event()
        threading.Thread(target=self.run, name="minutes", daemon=True).start()

    def run(self):
        while not self.ended.wait(EVERY):
            now = time.monotonic()
            lines = [f"\nafter {(now - self.began) / 60:.0f} min, {self.done} tests done, running:"]
            lines += [f"{now - since:5.0f} s  {name}" for name, since in sorted(self.running.items())]
            os.write(self.out, ("\n".join(lines) + "\n").encode())

    def pytest_runtest_logstart(self, nodeid):
        self.running = {**self.running, nodeid: time.monotonic()}

    def pytest_runtest_logfinish(self, nodeid):
        self.running = {other: since for other, since in self.running.items() if other != nodeid}
        self.done += 1

    def pytest_unconfigure(self):
        self.ended.set()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    PROGRAMS[:] = [program for program in PROGRAMS if program.running]
    SIZES.clear()
    SIZES.update((program, program.log_size()) for program in PROGRAMS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call):
    report = yield
    if report.failed:
        if "Timeout (>" in str(call.excinfo and call.excinfo.value):
            ask_for_stacks()
        for program in PROGRAMS:
            text = program.log_text(SIZES.get(program, 0))
            if text.strip() or program not in SIZES:
                report.sections.append((f"log of {program.name} in {program.log.parent.name}",
                                        "\n".join(text.splitlines()[-LINES:])))
    return report


def ask_for_stacks():
    """Each process of each Odoo writes the stacks of its threads to its log."""
    for odoo in [program for program in PROGRAMS if isinstance(program, Odoo) and program.running]:
        since = odoo.log_size()
        for pid in (odoo.pid, *children(odoo.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
        with contextlib.suppress(StackError):
            wait_until(lambda odoo=odoo, since=since: "Thread: " in odoo.log_text(since), 5, "it has no time for that")
