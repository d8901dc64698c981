"""What is tested here needs no server: single modules of the addon are imported without an Odoo, see stack/addon.py.

A test in this folder asks for no fixture of ../conftest.py that starts something: `./dev test --fast` is for the moment
between two edits.
"""
import pytest

from stack.addon import importable, stand_in_for_odoo

importable()
stand_in_for_odoo()
SERVERS = {"stack", "series"}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    for item in items:
        # this hook is called with the items of all folders
        if item.path.parent.name == "fast" and SERVERS & set(item.fixturenames):
            raise pytest.UsageError(f"{item.nodeid} wants a server: it does not belong in tests/fast")


class Clock:
    """Stands until it is set: `clock.now += 5`. Who sleeps moves it on."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []     # seconds

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """The addon's clock."""
    from bus_alt_connection import runtime
    clock = Clock()
    monkeypatch.setattr(runtime, "monotonic", clock.monotonic)
    monkeypatch.setattr(runtime, "sleep", clock.sleep)
    return clock
