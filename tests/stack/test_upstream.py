"""Upstream's own tests of the addon `bus`, run by Odoo's own runner with this addon loaded.

Contract: straight to PostgreSQL all of them pass; through the pooler all but one, which LISTENs by itself in a thread
that is no listener of Odoo's, on a pooled connection, and so fails there without this addon too (an early series 16 has
no such test). Nothing is taken for a pass that did not run: a run of fewer tests than upstream wrote is a failure.
"""
import ast
import re
from pathlib import Path

import pytest

from stack import StackError

pytestmark = [pytest.mark.needs("upstream_tests_of_notifications"), pytest.mark.timeout(600)]

LISTENS_BY_ITSELF = ["NotifyTests.test_postcommit"]
WITH = "base,web,bus_alt_connection"
WITHOUT = "base,web"


class Report:
    """What Odoo's runner says of a run, read from its log."""

    def __init__(self, log):
        self.log = log
        self.failed = sorted(set(re.findall(r" (?:FAIL|ERROR): (?:Subtest )?(\w+\.\w+)", log)))
        self.skipped = sorted(set(re.findall(r" skipped (\w+\.\w+)", log)))
        self.started = set(re.findall(r" Starting (\w+\.\w+) \.\.\.", log))
        counts = re.search(r"(\d+) failed, (\d+) error\(s\) of (\d+) tests when loading database", log)
        assert counts, "Odoo ran no tests:\n" + log[-3000:]
        self.failures, self.errors, self.total = map(int, counts.groups())

    def __str__(self):
        return (f"{self.total} tests, {self.failures} failed, {self.errors} errors; failed: {self.failed}; "
                f"skipped: {self.skipped}")


def written(source):
    """The tests that stand in upstream's source: {"Class.test"}, without those that another Odoo's class inherits."""
    code = Path(source.env["PYTHONPATH"])
    folder = next(path for path in (code / "odoo/addons/bus/tests", code / "addons/bus/tests") if path.is_dir())
    return {f"{node.name}.{method.name}" for path in folder.glob("test_*.py")
            for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
            for method in node.body if isinstance(method, ast.FunctionDef) and method.name.startswith("test_")}


@pytest.fixture(scope="module")
def database(stack):
    return stack.database("upstream")


@pytest.fixture
def listens_by_itself(stack):
    """The tests of this Odoo that fail through a pooler."""
    return [name for name in LISTENS_BY_ITSELF if name in written(stack.machine.odoo)]


def run(stack, database, pooled, load, name, tags="/bus"):
    odoo = stack.odoo(pooled=pooled, name=f"odoo-upstream-{name}")
    # in a module that is updated the tests run that belong to its installation; the others when all is loaded
    args = ["-u", "bus", "--test-tags", tags, "--log-level=info"]
    options = {"server_wide_modules": load, "workers": 0, "max_cron_threads": 0, "db_name": database,
               "limit_time_real": 600}
    if load == WITH:
        options.update(imdispatcher_db_host=stack.postgres.host, imdispatcher_db_port=stack.postgres.port)
    odoo.launch([*odoo.source.command, "-c", odoo.config({"imdispatcher_db_host": None, **options}), *args,
                 "--stop-after-init"], odoo.env(), odoo.folder)
    if not odoo.wait(300):
        odoo.kill()
        raise StackError(f"upstream's tests did not end: {odoo.last_lines()}")
    report = Report(odoo.log_text())
    print(f"{name}: {report}")
    loaded = "The listeners of the bus and of cron connect to" in report.log
    assert loaded == (load == WITH)
    return report, written(odoo.source)


def test_straight_to_postgresql(stack, database):
    report, wanted = run(stack, database, pooled=False, load=WITH, name="direct")
    assert not report.failed and not report.failures and not report.errors, str(report)
    assert wanted - report.started == set()


def test_through_the_pooler(stack, database, listens_by_itself):
    report, wanted = run(stack, database, pooled=True, load=WITH, name="pooled")
    assert report.failed == listens_by_itself, str(report)
    assert report.failures + report.errors == len(listens_by_itself)
    assert wanted - report.started == set()


def test_what_fails_fails_without_the_addon_too(stack, database, listens_by_itself):
    if not listens_by_itself:
        pytest.skip("this Odoo has no test that fails through a pooler")
    tags = ",".join("/bus:" + name for name in listens_by_itself)
    report, _ = run(stack, database, pooled=True, load=WITHOUT, name="pooled-without", tags=tags)
    assert report.failed == listens_by_itself, str(report)
