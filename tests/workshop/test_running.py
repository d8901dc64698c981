"""What running.py promises: deadlines, stacks, the logs of a failed test, and what runs side by side.

Contract: each test is a run of pytest. Takes 20 s.
"""
import json
import os
import subprocess
import sys

import pytest

from tests.documents import REPO

HEAD = """
import os, pathlib, socket, sys, threading, time
import psycopg2, pytest
from stack.process import Program
from stack.servers.postgres import connect

class Sleeper(Program):
    def __init__(self, folder, says):
        super().__init__("Sleeper", folder / "sleeper.log")
        self.launch(["sh", "-c", f"echo {says}; sleep 60"], None, "/")
        while not self.log_size():
            time.sleep(0.01)
    def say(self, text):
        with open(self.log, "a") as log:
            log.write(text)
"""


@pytest.fixture
def run(tmp_path):
    """Run a file of tests: what pytest printed. `args` are pytest's."""
    def run(text, *args):
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        (tmp_path / "conftest.py").write_text("from tests import running\nrunning.EVERY = 0.2\n"
                                               "pytest_plugins = ['tests.running']\n")
        (tmp_path / "test_it.py").write_text(HEAD + text)
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        env |= {"PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-p", "no:odoo", "-p", "no:cacheprovider", *args]
        return subprocess.run(command, cwd=tmp_path, env=env, text=True, timeout=120, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT).stdout
    return run


@pytest.mark.parametrize("args", [(), ("-n", "1")], ids=["here", "xdist"])
def test_a_deadline_shows_where_every_thread_is(run, args):
    out = run("""
def waits_elsewhere():
    time.sleep(30)

@pytest.mark.timeout(2)
def test_hangs():
    threading.Thread(target=waits_elsewhere, daemon=True, name="the other").start()
    threading.Event().wait()

def test_goes_on():
    pass
""", *args)
    assert "1 failed, 1 passed" in out
    assert "Timeout (>2.0s)" in out and "threading.Event().wait()" in out
    assert "in waits_elsewhere" in out


def test_a_server_that_does_not_answer_is_no_hang(run):
    """libpq would go on waiting after a signal: Python's handler has no turn."""
    out = run("""
@pytest.mark.timeout(2)
def test_hangs():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connect(*silent.getsockname(), "postgres", "nobody", "")

def test_goes_on():
    pass
""")
    assert "1 failed, 1 passed" in out and "Timeout (>2.0s)" in out


def test_a_failed_test_shows_what_its_servers_said(run):
    out = run("""
@pytest.fixture(scope="module")
def whatever(tmp_path_factory):
    sleeper = Sleeper(tmp_path_factory.mktemp("used"), "said-at-its-start")
    yield sleeper
    sleeper.end_by_force()

@pytest.fixture(scope="module")
def unused(tmp_path_factory):
    sleeper = Sleeper(tmp_path_factory.mktemp("unused"), "never-shown")
    yield sleeper
    sleeper.end_by_force()

def test_passes(whatever, unused):
    whatever.say("said before\\n")

def test_fails(whatever, tmp_path):
    whatever.say("said meanwhile\\n")
    own = Sleeper(tmp_path, "said-by-its-own")
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
import json

@pytest.fixture(autouse=True)
def times(request):
    began = time.monotonic()
    yield
    with open(pathlib.Path(__file__).parent / "times", "a") as file:
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
@pytest.mark.parametrize("kind", ["threaded", "prefork"])
@pytest.mark.parametrize("series", [19, 14], ids=["odoo19", "odoo14"], scope="session")
def test_it(series, kind, request):
    with open(pathlib.Path(__file__).parent / "who", "a") as file:
        file.write(f"{os.getpid()} {series}" + chr(10))
    time.sleep(0.1)
""", "-n", "2", "--dist", "loadscope")
    who = {tuple(line.split()) for line in (tmp_path / "who").read_text().splitlines()}
    assert len(who) == 2 and len({pid for pid, _ in who}) == 2
