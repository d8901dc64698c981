"""In the evented process the coroutines wait on gevent's hub: all that they promise holds there as well."""
import subprocess
import sys
from pathlib import Path

EVENTED = """
import gevent.monkey
gevent.monkey.patch_all()
import sys
import pytest
from stack.addon import importable
importable()
from bus_alt_connection.hub_selector import HubSelector
from bus_alt_connection.tasks import Tasks
tasks = Tasks()
assert isinstance(tasks._selector, HubSelector)
tasks.close()
sys.exit(pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", sys.argv[1]]))
"""
FREE = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent, socket, time
from stack.addon import importable
importable()
from bus_alt_connection.tasks import Tasks, sleep
tasks, beats = Tasks(), []
reader, writer = socket.socketpair()
writer.send(b".")       # which nobody reads
tasks.watch(reader.fileno(), lambda: gevent.sleep(0.3))     # the greenlet is elsewhere

def beat():
    while True:
        beats.append(time.monotonic())
        gevent.sleep(0.01)
beating, used = gevent.spawn(beat), time.process_time()
tasks.run(sleep(0.1))
assert len(beats) > 10, beats
assert time.process_time() - used < 0.15, "the hub was kept busy"
tasks.close()
"""


def run(code, *args):
    repo = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], cwd=repo, text=True, timeout=120,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_the_tests_of_the_tasks_hold_under_gevent():
    done = run(EVENTED, Path(__file__).with_name("test_tasks.py"))
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


def test_what_is_not_read_leaves_the_hub_to_the_others():
    done = run(FREE)
    assert done.returncode == 0, done.stdout
