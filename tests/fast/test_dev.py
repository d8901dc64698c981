"""./dev fetches what a command needs before it starts, and no more.

Contract: the series that are asked for are fetched, or the run ends; what only a part of the tests needs may be
missing.
"""
import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

from stack.download.fetch import THINGS
from stack.download.python import GROUPS

DEV = Path(__file__).parent.parent.parent / "dev"


@pytest.fixture(scope="module")
def dev():
    loader = importlib.machinery.SourceFileLoader("dev", str(DEV))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("dev", loader))
    loader.exec_module(module)
    return module


def test_every_command_names_what_can_be_fetched(dev):
    for _, groups, things in dev.COMMANDS.values():
        assert set(things) <= set(THINGS) and set(groups) <= set(GROUPS)


def test_the_whole_suite_fetches_all(dev):
    groups, things = dev.COMMANDS["test"][1:]
    # but for the site's, which its one test fetches
    assert {*things, *(f"packages-{group}" for group in groups), "packages-docs"} == set(THINGS)


SERVERS = {"programs", "odoo-19", "odoo-14"}
REST = {"chromium", "haproxy", "patroni", "published-19", "queue-job-19", "queue-job-14", "packages-orjson",
        "prometheus"}


@pytest.mark.parametrize("args, wanted, needed", [
    ([], SERVERS | REST, {"programs", "odoo-19"}),
    (["--series", "14", "-k", "bus"], {"programs", "odoo-14"} | REST, {"programs", "odoo-14"}),
    (["--series=19,14"], SERVERS | REST, SERVERS),
    (["--odoo-home", "/a/tree"], {"programs"} | REST, {"programs"}),
    (["tests/stack/test_bus.py", "-x"], SERVERS, {"programs", "odoo-19"}),
    (["--series", "14", "tests/stack/test_bus.py::test_one"], {"programs", "odoo-14"}, {"programs", "odoo-14"}),
    (["tests/fast/test_dev.py"], set(), set()),
])
def test_what_the_tests_need(dev, args, wanted, needed):
    things, optional = dev.things_to_test(args, dev.COMMANDS["test"][2])
    assert set(things) == wanted
    assert set(things) - set(optional) == needed
