"""What is tested here needs no server: single modules of the addon are imported without an Odoo, see stack/addon.py.

A test in this folder asks for no fixture of ../conftest.py that starts something: `./dev test --fast` is for the moment
between two edits.
"""
import pytest

from stack.addon import importable

importable()
SERVERS = {"stack", "series"}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    for item in items:
        # this hook is called with the items of all folders
        if item.path.parent.name == "fast" and SERVERS & set(item.fixturenames):
            raise pytest.UsageError(f"{item.nodeid} wants a server: it does not belong in tests/fast")
