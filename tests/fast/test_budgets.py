"""The addon stays small enough to be read: a budget of lines for the core and for all, and no circle of imports.

The core is what carries the bus past a pooler and keeps it alive; it is loaded in each process that listens, and needs
none of the other parts. Each file counts whole, with its comments and blank lines.
"""
import ast
import graphlib

import pytest

from stack.addon import FOLDER, NAME

# Lines: of the core together, of the addon, of a file of the core. The aim is 1,600 and 2,850; these are what is there,
# so that it only gets less: lower them with each line that goes. (Version 2 had 4,360 and 5,267.)
CORE, ALL, FILE = 2370, 3710, 270
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


# -- who imports whom --------------------------------------------------------------------------------------------------

SHARED = "errors"       # data that all may read
# Odoo before 19 finds the command by importing it with the addon; it imports nothing of the addon itself.
COMMAND = ("__init__", "cli")
WITHOUT_ODOO = ["errors", "runtime", "settings", "state", "loop_connection", "link"]


def modules():
    """{name in the addon: its tree}; of a folder its own name."""
    found = {}
    for path in sorted(FOLDER.rglob("*.py")):
        parts = path.relative_to(FOLDER).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = ast.parse(path.read_text())
    return found


TREES = modules()
TREES.pop("__manifest__")


def package_of(name):
    """The parts of the folder that `from . import` means in a module."""
    is_folder = (FOLDER / name.replace(".", "/") / "__init__.py").exists()
    return [] if name == "__init__" else name.split(".") if is_folder else name.split(".")[:-1]


def imported(name, also_late=True):
    """What a module imports: (its modules of the addon, others' names); `also_late`: in functions as well."""
    ours, others = set(), set()
    tree = TREES[name]
    for node in ast.walk(tree) if also_late else tree.body:
        if isinstance(node, ast.Import):
            others |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                folder = package_of(name)
                base = folder[:len(folder) - node.level + 1] + base
            elif base[:3] == ["odoo", "addons", NAME]:
                base = base[3:]
            else:
                others.add(node.module)
                continue
            for alias in node.names:
                whole, own = ".".join([*base, alias.name]), ".".join(base)
                ours.add(whole if whole in TREES else own or "__init__")
    return ours - {name}, others


def test_every_module_is_read():
    assert set(FILES) <= set(TREES) and SHARED in TREES
    assert {"endpoints", "errors"} <= imported("notifier")[0]
    assert any(imported(name)[0] for name in TREES if "." in name)
    unknown = {name: imported(name)[0] - set(TREES) for name in TREES}
    assert not any(unknown.values()), unknown


def test_there_is_no_circle():
    """Neither among those that are imported at the start nor with those that functions import."""
    graph = {name: imported(name)[0] - {"__init__"} for name in TREES}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as exc:
        pytest.fail(" -> ".join(reversed(exc.args[1])), pytrace=False)


@pytest.mark.parametrize("name", FILES)
def test_the_core_needs_no_extra(name):
    extras = {other for other in imported(name)[0] if other not in [*FILES, SHARED] and (name, other) != COMMAND}
    assert not extras


def test_what_is_shared_imports_nothing_of_the_addon():
    assert not imported(SHARED)[0]
    assert not imported("cli", also_late=False)[0] - {"cli.bus_doctor"}
    assert not imported("cli.bus_doctor", also_late=False)[0]


@pytest.mark.parametrize("name", WITHOUT_ODOO)
def test_what_needs_no_odoo(name):
    """At its start, and with all that it imports itself."""
    ours, others = imported(name, also_late=False)
    assert ours <= set(WITHOUT_ODOO)
    assert not [other for other in others if other.split(".")[0] == "odoo"]


def test_only_the_link_waits_on_postgresql():
    """And only one module has the clock, randomness and threads: a simulation replaces both."""
    clock, waits = {"time", "random", "threading"}, {"select", "selectors"}
    assert [name for name in FILES if waits & imported(name)[1]] == ["link"]
    allowed = {"routing"}       # which thread it is, and nothing else of threading
    assert [name for name in FILES if clock & imported(name)[1] and name not in allowed] == ["runtime"]
    uses = {node.attr for node in ast.walk(TREES["routing"]) if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id in clock}
    assert uses == {"local"}
