"""The addon stays small enough to be read: each file counts whole, with its comments and blank lines.

The core is what carries the bus past a pooler and keeps it alive; it is loaded in each process that listens.
"""
import pytest

from stack.addon import FOLDER

CORE, ALL, FILE = 1600, 2850, 270       # lines: of the core together, of the addon, of a file of the core
FILES = ["__init__", "install", "settings", "endpoints", "runtime", "link", "pooled", "session", "state", "listener",
         "recovery", "notifier", "routing", "loop_connection", "dispatcher", "cron"]


def lines():
    """{path in the addon: its number of lines}, the core first."""
    paths = [*(FOLDER / f"{name}.py" for name in FILES), *sorted(FOLDER.rglob("*.py"))]
    return {str(path.relative_to(FOLDER)): len(path.read_text().splitlines()) for path in dict.fromkeys(paths)}


@pytest.fixture(scope="module")
def sums(pytestconfig):
    """{path, "core" or "all": lines}, printed as a table."""
    found = lines()
    core = {name: count for name, count in found.items() if name.removesuffix(".py") in FILES}
    rest = {name: count for name, count in found.items() if name not in core}
    sums = {**core, "core": sum(core.values()), **rest, "all": sum(found.values())}
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + "\n".join(f"{name:24}{count:6}" for name, count in sums.items()))
    return sums


@pytest.mark.parametrize("name, most", [("core", CORE), ("all", ALL), *((f"{name}.py", FILE) for name in FILES)])
def test_budget(sums, name, most):
    if sums[name] > most:
        pytest.fail(f"{name} has {sums[name]} lines, {sums[name] - most} too many", pytrace=False)
