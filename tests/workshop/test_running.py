"""What running.py promises: deadlines, stacks, the logs of a failed test, turns. Each test is a run of pytest.

Takes 20 s.
"""
import json
import os
import subprocess
import sys

import pytest

from tests.documents import REPO
from tests.running import scope_of

HEAD = """
import subprocess, sys, threading, time
import pytest
from stack.process import Program

class Sleeper(Program):
    def __init__(self, folder, says):
        super().__init__("Sleeper", folder / "sleeper.log")
        self.says = says
    def start(self):
        self.launch(["sh", "-c", f"echo {self.says}; sleep 60"], None, "/")
        while not self.log_size():
            time.sleep(0.01)
        return self
    def say(self, text):
        with open(self.log, "a") as log:
            log.write(text)
"""


@pytest.fixture
def run(tmp_path):
    """Run a file of tests: what pytest printed. `args` are pytest's."""
    def run(text, *args):
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        (tmp_path / "conftest.py").write_text("from tests import running\nrunning.EVERY, running.GRACE = 0.2, 1\n"
                                               "pytest_plugins = ['tests.running']\n")
        (tmp_path / "test_it.py").write_text(HEAD + text)
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        env |= {"PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-p", "no:odoo", "-p", "no:cacheprovider", *args]
        return subprocess.run(command, cwd=tmp_path, env=env, text=True, timeout=120, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT).stdout
    return run


def test_a_deadline_shows_where_every_thread_is(run):
    out = run("""
def waits_elsewhere():
    time.sleep(30)

@pytest.mark.timeout(2)
def test_hangs():
    threading.Thread(target=waits_elsewhere, daemon=True, name="the other").start()
    threading.Event().wait()

def test_goes_on():
    pass
""")
    assert "1 failed, 1 passed" in out
    assert "Timeout (>2.0s)" in out and "threading.Event().wait()" in out
    assert "thread the other" in out and "in waits_elsewhere" in out


def test_a_call_into_c_is_ended_with_its_server(run):
    """libpq waits for an answer, and goes on waiting after a signal: Python's handler has no turn."""
    out = run("""
import psycopg2
from stack.process import free_port

class Silent(Sleeper):
    def start(self):
        self.port = free_port()
        code = f"import socket, time; s = socket.create_server(('127.0.0.1', {self.port})); print(1); time.sleep(60)"
        self.launch([sys.executable, "-u", "-c", code], None, "/")
        while not self.log_size():
            time.sleep(0.01)
        return self

@pytest.mark.timeout(2)
def test_hangs(tmp_path):
    psycopg2.connect(host="127.0.0.1", port=Silent(tmp_path, "").start().port, user="nobody")

def test_goes_on():
    pass
""")
    assert "1 failed, 1 passed" in out
    assert "a test does not end after its deadline" in out
    assert "nor after that" not in out


def test_what_nothing_ends_ends_the_process(run):
    out = run("""
import signal

@pytest.mark.timeout(2)
def test_hangs():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    time.sleep(30)
""")
    assert "nor after that: the process is ended" in out
    assert "in test_hangs" in out


def test_a_failed_test_shows_what_its_servers_said(run):
    out = run("""
@pytest.fixture(scope="module")
def whatever(tmp_path_factory):
    sleeper = Sleeper(tmp_path_factory.mktemp("used"), "said-at-its-start").start()
    yield sleeper
    sleeper.end_by_force()

@pytest.fixture(scope="module")
def unused(tmp_path_factory):
    sleeper = Sleeper(tmp_path_factory.mktemp("unused"), "never-shown").start()
    yield sleeper
    sleeper.end_by_force()

def test_passes(whatever, unused):
    whatever.say("said before\\n")

def test_fails(whatever, tmp_path):
    whatever.say("said meanwhile\\n")
    own = Sleeper(tmp_path, "said-by-its-own").start()
    own.end_by_force()
    own.log.unlink()
    assert not "this fails"
""", "-x")
    assert "log of Sleeper in used0" in out
    assert "said meanwhile" in out and "said-by-its-own" in out
    assert "said before" not in out.partition("test_fails")[2].partition("log of")[2]
    assert "never-shown" not in out and "said-at-its-start" not in out


def test_what_runs_is_said_all_the_time(run):
    out = run("""
def test_takes_its_time():
    time.sleep(1)
""")
    assert "0 tests done, running:" in out
    assert "test_it.py::test_takes_its_time" in out


def test_alone_is_alone(run, tmp_path):
    out = run("""
import json, pathlib
FILE = pathlib.Path(__file__).parent / "times"

@pytest.fixture(autouse=True)
def times(request):
    began = time.monotonic()
    yield
    with open(FILE, "a") as file:
        file.write(json.dumps([request.node.name.startswith("test_alone"), began, time.monotonic()]) + chr(10))

@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("series", ["odoo19", "odoo14"])
def test_beside(number, series):
    time.sleep(0.3)

@pytest.mark.alone
@pytest.mark.parametrize("series", ["odoo19", "odoo14"])
def test_alone(series):
    time.sleep(0.3)
""", "-n", "2", "--dist", "loadscope")
    assert "10 passed" in out
    spans = [json.loads(line) for line in (tmp_path / "times").read_text().splitlines()]
    together = [one for one in spans for other in spans if one is not other and one[1] < other[2] and other[1] < one[2]]
    assert together and not [one for one in together if one[0]]


def test_the_tests_of_a_module_and_a_series_run_in_one_process(run, tmp_path):
    run("""
import os, pathlib

@pytest.mark.parametrize("kind", ["threaded", "prefork"])
@pytest.mark.parametrize("series", ["odoo19", "odoo14"])
def test_it(series, kind, request):
    with open(pathlib.Path(__file__).parent / "who", "a") as file:
        file.write(f"{os.getpid()} {series}" + chr(10))
    time.sleep(0.1)
""", "-n", "2", "--dist", "loadscope")
    who = [line.split() for line in (tmp_path / "who").read_text().splitlines()]
    assert len(who) == 4
    for series in ("odoo19", "odoo14"):
        assert len({pid for pid, one in who if one == series}) == 1
    assert len({pid for pid, _ in who}) == 2


@pytest.mark.parametrize("nodeid, scope", [
    ("tests/test_a.py::test_it", "tests/test_a.py "), ("tests/test_a.py::test_it[odoo19]", "tests/test_a.py odoo19"),
    ("tests/test_a.py::test_it[threaded-odoo14-fast]", "tests/test_a.py odoo14"),
    ("tests/test_a.py::test_it[odoo14-unknown name]", "tests/test_a.py odoo14"),
    ("tests/test_a.py::test_it[odoo]", "tests/test_a.py odoo"),
])
def test_what_shares_servers(nodeid, scope):
    assert scope_of(nodeid) == scope
