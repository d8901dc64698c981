"""The checks that .pre-commit-config.yaml runs before a commit, with the versions of stack/requirements-test.txt.

Contract: ruff and pylint-odoo have nothing to say, and Python 3.6 can read the addon.
"""
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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


@pytest.mark.parametrize("path", READ_BY_OLD_PYTHON, ids=lambda path: str(path.relative_to(REPO)))
def test_python_36_reads_it(path):
    ast.parse(path.read_text(), str(path), feature_version=(3, 6))


@pytest.mark.parametrize("source", ["if (x := 1):\n    pass", "def f(a, /):\n    pass"])
def test_the_check_for_python_36_finds_what_is_newer(source):
    with pytest.raises(SyntaxError):
        ast.parse(source, feature_version=(3, 6))


def test_pre_commit_has_the_versions_that_are_tested():
    config = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())
    revisions = {repo["repo"].rpartition("/")[2]: repo["rev"] for repo in config["repos"]}
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (REPO / "stack/requirements-test.txt").read_text(), re.M))
    assert revisions["ruff-pre-commit"] == "v" + pins["ruff"]
    assert revisions["pylint-odoo"] == "v" + pins["pylint-odoo"]
