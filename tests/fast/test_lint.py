"""The checks that .pre-commit-config.yaml runs before a commit, with the versions of stack/requirements-test.txt.

Contract: ruff and pylint-odoo have nothing to say, and Python 3.6 can read the addon.
"""
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.old_python import old_python

REPO = Path(__file__).parent.parent.parent
ADDON = REPO / "bus_alt_connection"
READ_BY_OLD_PYTHON = sorted([*ADDON.rglob("*.py"), *REPO.glob("tests/inside/*.py"), REPO / "setup.py"])


def check(*command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=REPO, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}", pytrace=False)


def test_ruff():
    check("ruff", "check", "--no-cache", "--output-format=concise", ".")


def test_pylint_odoo():
    check("pylint", "--rcfile=.pylintrc", ADDON.name)


def newer(*paths):
    """What these files use that Python 3.6 has not, as vermin sees it."""
    command = [sys.executable, "-c", "from vermin import main; main()", "-vvv", "--target=3.6-", "--violations",
               "--eval-annotations", "--no-tips", "--processes=1", *map(str, paths)]
    done = subprocess.run(command, cwd=REPO, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = done.stdout.splitlines()
    assert any(line.startswith("Minimum required versions") for line in lines), done.stdout
    # vermin takes `for x in await y`, which 3.5 reads, for an await in the comprehension itself
    return [line for line in lines if line.startswith("  L") and "await in comprehensions" not in line]


def test_nothing_newer_than_python_36():
    assert not newer(*READ_BY_OLD_PYTHON)


def test_python_36_itself_reads_it():
    python = old_python()
    if not python:
        pytest.skip("no python3.6 with pip and setuptools on this machine; vermin has looked at the files")
    code = "import sys; [compile(open(path, 'rb').read(), path, 'exec') for path in sys.argv[1:]]"
    done = subprocess.run([python, "-c", code, *READ_BY_OLD_PYTHON], text=True, capture_output=True)
    assert not done.returncode, done.stderr


@pytest.mark.parametrize("source", ["if (x := 1):\n    pass", "def f(a, /):\n    pass", "import dataclasses",
                                    "import time\ntime.monotonic_ns()", "def f(a: list[int]):\n    pass"])
def test_the_check_for_python_36_finds_what_is_newer(source, tmp_path):
    (tmp_path / "newer.py").write_text(source + "\n")
    assert newer(tmp_path / "newer.py")


def test_pre_commit_has_the_versions_that_are_tested():
    config = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())
    revisions = {repo["repo"].rpartition("/")[2]: repo["rev"] for repo in config["repos"]}
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (REPO / "stack/requirements-test.txt").read_text(), re.M))
    assert revisions["ruff-pre-commit"] == "v" + pins["ruff"]
    assert revisions["pylint-odoo"] == "v" + pins["pylint-odoo"]
