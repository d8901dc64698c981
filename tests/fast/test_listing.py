"""`./dev test --list` names every file of tests with its promise, and every room keeps to what its `__init__` says."""
import ast
import re
import subprocess
import sys

import pytest

from tests.documents import REPO

# who may import what, in the words of each __init__: of `stack`, `bench` and `tests` nothing else
MAY = {
    "stack/download": {"stack.base", "stack.process", "stack.download"},
    "stack/faults": {"stack.base", "stack.process", "stack.faults"},
    "stack/servers": {"stack", "stack.base", "stack.machine", "stack.process", "stack.recipes", "stack.series",
                      "stack.download", "stack.faults.network", "stack.servers"},
    "stack/clients": {"stack", "stack.base", "stack.machine", "stack.process", "stack.series", "stack.download",
                      "stack.servers", "stack.clients"},
    "stack": {"stack"},
    "bench": {"stack", "bench"},
    "tests/fast": {"stack", "bench", "tests.fast", "tests.documents", "tests.old_python",
                   "tests.inside.settings_values"},
    "tests/simulation": {"stack", "tests.simulation"},
    "tests/stack": {"stack", "bench", "tests.documents", "tests.stack"},
    "tests/workshop": {"stack", "bench", "tests.documents", "tests.running", "tests.old_python", "tests.workshop"},
}


def test_every_file_has_a_promise():
    done = subprocess.run([sys.executable, "dev", "test", "--list"], cwd=REPO, text=True, capture_output=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    named = {line.split()[0]: line for line in lines}
    wanted = {str(path.relative_to(REPO)) for path in REPO.glob("tests/**/test_*.py")
              if not {"inside", "addons"} & set(path.parts)}
    assert set(named) == wanted
    assert not [name for name, line in named.items() if not line.endswith(".")]
    rooms = [line for line in done.stdout.splitlines() if re.match(r"\w+: ", line)]
    assert rooms and all(line.endswith(".") for line in rooms)


def imported(path):
    """The modules of this repository that a file imports, with their full names."""
    package = path.relative_to(REPO).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from stack import programs`: a module, or a name in one
            folder = REPO / module.replace(".", "/")
            names = [f"{module}.{alias.name}" if (folder / f"{alias.name}.py").exists() else module
                     for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ("stack", "bench", "tests"))


@pytest.mark.parametrize("room", MAY)
def test_a_room_imports_what_it_says(room):
    allowed, wrong = MAY[room], []
    whole = allowed - {"stack"} if room.startswith("stack/") else allowed     # with what is in them
    for path in (REPO / room).glob("*.py" if room == "stack" else "**/*.py"):
        if "addons" not in path.parts:
            wrong += [f"{path.relative_to(REPO)}: {name}" for name in imported(path) if name not in allowed
                      and not any(name.startswith(f"{each}.") for each in whole)]
    assert not wrong
