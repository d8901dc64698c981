"""What a run says while it goes on and of what failed, and who has the machine to himself: a plugin of pytest.

Contract:

* Once a minute the tests that run are printed, with how long each has been running.
* The report of a failed test has the end of the log of each server that was started or wrote to its log meanwhile.
* The report of a test that exceeded its deadline (pytest-timeout) has the stacks of all threads as well, and those of
  each Odoo, which writes them to its log when it is asked.
* A deadline is a signal, which a call into C may not notice. GRACE seconds later the servers are ended, which ends such
  a call; if even that does not help, so is the process.
* While a test that is marked `alone` runs, no other does: it measures what a neighbour would disturb.
* Side by side run the modules, each with all its tests of one series together, in the order of their collection.
"""
import contextlib
import faulthandler
import fcntl
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback

import pytest

from stack import StackError
from stack.process import PROGRAMS, children, wait_until
from stack.servers.odoo import Odoo

EVERY = 60          # seconds
GRACE = 60          # seconds
LINES = 60          # of each log


def pytest_configure(config):
    config.addinivalue_line("markers", "alone: no other test runs meanwhile; say in a comment what it measures")
    worker = getattr(config, "workerinput", None)
    # without pytest-xdist there is nobody else
    config.pluginmanager.register(Turns(worker and worker["testrunuid"]), "turns")
    config.pluginmanager.register(Watch(), "watch")
    if worker is None:
        config.pluginmanager.register(Minutes(), "minutes")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Modules(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return scope_of(nodeid)

    # the largest first would have the series take turns, and a stack is started for each turn
    config.option.loadscopereorder = False
    return Modules(config, log)


def scope_of(nodeid):
    """What of a test has to be the same for tests that share servers: its module and its series."""
    path, _, rest = nodeid.partition("::")
    series = re.search(r"\[(?:.*-)?(odoo\d*)\b", rest)
    return f"{path} {series[1] if series else ''}"


class Minutes:
    """Prints what runs; where several processes run tests, it is in the one that controls them."""

    def __init__(self):
        self.running = {}
        self.done = 0
        self.out = os.dup(1)        # what a test prints is caught, this is not
        self.began = time.monotonic()
        self.ended = threading.Event()
        threading.Thread(target=self.run, name="minutes", daemon=True).start()

    def run(self):
        while not self.ended.wait(EVERY):
            os.write(self.out, self.text().encode())

    def text(self):
        now = time.monotonic()
        lines = [f"after {(now - self.began) / 60:.0f} min, {self.done} tests done, running:"]
        lines += [f"{now - since:5.0f} s  {name}" for name, since in sorted(self.running.items())]
        return "\n" + "\n".join(lines) + "\n"

    def pytest_runtest_logstart(self, nodeid):
        self.running = {**self.running, nodeid: time.monotonic()}

    def pytest_runtest_logfinish(self, nodeid):
        self.running = {other: since for other, since in self.running.items() if other != nodeid}
        self.done += 1

    def pytest_unconfigure(self):
        self.ended.set()


class Turns:
    """Tests take turns over two locked files: many that are not alone, or one that is."""

    def __init__(self, run):
        """`run`: what the processes of one run have in common, None if there is only one."""
        self.files = [os.path.join(tempfile.gettempdir(), f"bus-alt-tests-{run}.{name}") for name in
                      ("next", "turn")] if run else None

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        if not self.files:
            yield
            return
        with open(self.files[0], "a") as next_one, open(self.files[1], "a") as turn:
            # who waits to be alone holds the first, so that others cannot go before it again and again
            fcntl.flock(next_one, fcntl.LOCK_EX)
            fcntl.flock(turn, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
            fcntl.flock(next_one, fcntl.LOCK_UN)
            yield

    def pytest_unconfigure(self):
        for path in self.files or ():
            with contextlib.suppress(FileNotFoundError):    # the other process was quicker
                os.unlink(path)


class Watch:
    """Knows which servers the test that runs uses, and ends what does not end."""

    def __init__(self):
        self.error = os.dup(2)
        self.sizes = {}
        self.overdue = None     # time.monotonic(), None while no test runs
        self.ended = threading.Event()
        threading.Thread(target=self.run, name="watch", daemon=True).start()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        PROGRAMS[:] = [program for program in PROGRAMS if program.running]
        self.sizes = {program: program.log_size() for program in PROGRAMS}
        seconds = deadline(item)
        self.overdue = time.monotonic() + seconds + GRACE if seconds else None

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, call):
        report = (yield).get_result()
        if report.failed:
            if call.excinfo and "Timeout (>" in str(call.excinfo.value):
                report.sections.append(("stacks of all threads", stacks()))
                ask_for_stacks()
            report.sections.extend(self.logs())
        if call.when == "teardown":
            self.overdue = None

    def logs(self):
        """(title, text) of each server that was started, or said something, since the test began."""
        for program in PROGRAMS:
            text = program.log_text(self.sizes.get(program, 0))
            if text.strip() or program not in self.sizes:
                yield f"log of {program.name} in {program.log.parent.name}", "\n".join(text.splitlines()[-LINES:])

    def run(self):
        while not self.ended.wait(1):
            overdue = self.overdue
            if overdue and time.monotonic() > overdue:
                os.write(self.error, b"\na test does not end after its deadline: its servers are ended\n")
                faulthandler.dump_traceback(self.error)
                for program in list(PROGRAMS):
                    program.end_by_force()
                if not self.ended.wait(GRACE) and self.overdue == overdue:
                    os.write(self.error, b"\nnor after that: the process is ended\n")
                    os._exit(70)

    def pytest_unconfigure(self):
        self.ended.set()


def deadline(item):
    """In seconds, as pytest-timeout has it; 0 for none."""
    mark = item.get_closest_marker("timeout")
    asked = item.config.getoption("timeout")
    return float(mark.args[0] if mark else (item.config.getini("timeout") or 0) if asked is None else asked)


def stacks():
    """Of the threads but the main one, whose stack is the failure's own."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
                     for ident, frame in sys._current_frames().items() if ident != threading.main_thread().ident)


def ask_for_stacks():
    """Each process of each Odoo writes the stacks of its threads to its log."""
    for odoo in [program for program in PROGRAMS if isinstance(program, Odoo) and program.running]:
        since = odoo.log_size()
        for pid in (odoo.pid, *children(odoo.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
        with contextlib.suppress(StackError):
            wait_until(lambda odoo=odoo, since=since: "Thread: " in odoo.log_text(since), 5, "it has no time for that")
