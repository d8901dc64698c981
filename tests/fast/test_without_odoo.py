"""Modules of the addon that need no Odoo are imported without one, and their logic holds."""
import subprocess
import sys

import pytest

from bus_alt_connection import backoff
from stack.addon import FOLDER


def test_the_package_itself_is_not_executed():
    assert not [name for name in sys.modules if name == "odoo" or name.startswith("odoo.")]
    assert "post_load" not in vars(sys.modules["bus_alt_connection"])


def test_a_module_that_needs_an_odoo_says_so():
    code = "from stack.addon import importable; importable(); import bus_alt_connection.dispatcher"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, capture_output=True, text=True)
    assert done.returncode and "No module named 'odoo'" in done.stderr


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set: `clock.now = 5.0`."""
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now
    monkeypatch.setattr(backoff, "time", Clock())
    return backoff.time


def test_the_first_retry_is_made_at_once_and_the_others_slow_down(clock):
    waits = backoff.Backoff(longest=0.6)
    assert waits.next() == 0.0
    for ceiling in (0.05, 0.1, 0.2, 0.4, 0.6, 0.6):
        assert ceiling / 2 <= waits.next() <= ceiling


def test_many_at_once_are_spread(clock):
    waits = [backoff.Backoff(longest=0.6) for _ in range(100)]
    for each in waits:
        for _ in range(10):
            each.next()
    latest = [each.next() for each in waits]
    assert len(set(latest)) > 90 and max(latest) - min(latest) > 0.1


def test_after_a_success_it_begins_anew(clock):
    waits = backoff.Backoff(longest=0.6)
    for _ in range(5):
        waits.next()
    clock.now += 60
    assert waits.next() == 0.0
