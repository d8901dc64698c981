"""Programs in the background, each in a process group of its own, ended by process id and never by name."""
import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

from .base import StackError

DEADLINE = 60       # seconds; to catch what hangs, however slow the machine is: not to measure
PORTS, SLICES = range(10000, 32768), 64
TURNS = itertools.count(random.randrange(1000))
PROGRAMS = []       # every Program that was launched; whoever reads it may take out those that do not run any more
KEPT = 100_000      # bytes of a log that can be read when its file is gone


def free_port():
    """A port that nobody has, and that this process was not given lately.

    Below those that the kernel gives to outgoing connections (from 32768 on), and in a slice of this process's own, as
    it may be bound much later and several runs go on at a time.
    """
    size = (PORTS.stop - PORTS.start) // SLICES
    first = PORTS.start + os.getpid() % SLICES * size
    for number in itertools.islice(TURNS, size):
        port = first + number % size
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise StackError(f"all ports from {first} to {first + size - 1} are in use")


def wait_until(done, timeout, failure):
    """Ask `done` until it is true; raise `failure` (a text, or a function that makes it) after `timeout` seconds.

    Give DEADLINE where nothing is measured.
    """
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            raise StackError(failure() if callable(failure) else failure)
        time.sleep(0.02)


def shortest(measure, below, times=3):
    """The shortest of some measurements of a time, in seconds; no more are made once one is below the bound.

    Other work on the machine makes a time longer and never shorter.
    """
    took = []
    while len(took) < times and not (took and min(took) < below):
        took.append(measure())
    return min(took)


def children(pid):
    """The ids of the processes that `pid` started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the program's name, in parentheses, may hold anything
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return found


class Program:
    """One program that runs until it is stopped. Its output goes to the file `log`."""

    def __init__(self, name, log, run_as=None):
        self.name = name
        self.log = Path(log)
        self.run_as = run_as
        self.process = None
        self.kept = (0, b"")        # from which byte on, the end of the log

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self):
        return self.process.pid if self.process else None

    def launch(self, command, env, cwd):
        if self.running:
            raise StackError(f"{self.name} runs already")
        user = {"user": self.run_as[0], "group": self.run_as[1], "extra_groups": []} if self.run_as else {}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([str(part) for part in command], env=env, cwd=cwd, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=True, **user)
        if self not in PROGRAMS:
            PROGRAMS.append(self)

    def signal(self, number):
        if self.running:
            os.kill(self.pid, number)

    def wait(self, timeout):
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self, number, timeout):
        """Signal, wait, and end by force what is left, children included. Returns the seconds it took."""
        if self.process is None:
            return 0.0
        before = time.monotonic()
        self.signal(number)
        self.wait(timeout)
        took = time.monotonic() - before
        self.end_by_force()
        return took

    def end_by_force(self):
        if self.process is None:
            return
        # PostgreSQL's processes leave the group, so they are looked up before their parent is gone
        left = children(self.pid) if self.running else []
        for kill, target in [(os.killpg, self.pid), *((os.kill, child) for child in left)]:
            try:
                kill(target, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        self.process = None
        since = max(0, self.log_size() - KEPT)
        self.kept = since, self.log_bytes(since)

    def log_size(self):
        return self.log.stat().st_size if self.log.exists() else 0

    def log_text(self, since=0):
        """The log beyond `since` bytes, also after the program was ended and its folder removed."""
        return self.log_bytes(since).decode(errors="replace")

    def log_bytes(self, since):
        try:
            with open(self.log, "rb") as log:
                log.seek(since)
                return log.read()
        except FileNotFoundError:
            begin, text = self.kept
            return text[max(0, since - begin):]

    def last_lines(self, count=3):
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return " / ".join(line.strip() for line in lines[-count:]) or "it said nothing"
