"""What others meet first: the workflow and the issue forms are what GitHub reads, the change log can be built.

The schemas are SchemaStore's, as check-jsonschema has them with it; nothing is fetched.
"""
import ast
import re
import subprocess
import sys

import check_jsonschema
import pytest
import yaml
from click.testing import CliRunner

from tests.documents import REPO

GITHUB = REPO / ".github"
FRAGMENTS = REPO / "newsfragments"
FORMS = ["problem.yml", "wish.yml"]


def check(schema, path):
    return CliRunner().invoke(check_jsonschema.main, ["--builtin-schema", f"vendor.github-{schema}", str(path)])


@pytest.mark.parametrize("schema, name", [("workflows", "workflows/test.yml"),
                                          ("issue-config", "ISSUE_TEMPLATE/config.yml"),
                                          *(("issue-forms", f"ISSUE_TEMPLATE/{name}") for name in FORMS)])
def test_github_reads_it(schema, name, tmp_path):
    done = check(schema, GITHUB / name)
    assert not done.exit_code, done.output
    # and the check finds mistakes
    wrong = tmp_path / "wrong.yml"
    wrong.write_text((GITHUB / name).read_text() + "\nsurprise: [1]\n")
    assert check(schema, wrong).exit_code


def test_the_workflow_runs_what_a_developer_runs():
    jobs = yaml.safe_load((GITHUB / "workflows/test.yml").read_text())["jobs"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert [run for run in runs if run.startswith("./dev")] == [
        "./dev test --fast", "./dev test --series ${{ matrix.series }}"]
    # as the README says of every change
    assert jobs["stack"]["strategy"]["matrix"]["series"] == ["19", "14"]
    assert all("timeout-minutes" in job for job in jobs.values())
    assert all(float(version) >= 3.11 for version in jobs["fast"]["strategy"]["matrix"]["python"])


@pytest.mark.parametrize("name", FORMS)
def test_a_form_asks_for_the_doctor(name):
    body = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / name).read_text())["body"]
    doctor, = (part for part in body if part.get("id") == "doctor")
    assert "bus_doctor" in doctor["attributes"]["description"]
    if name == "problem.yml":
        assert doctor["validations"]["required"]


def test_the_change_log_has_every_fragment():
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "0"]
    done = subprocess.run(command, cwd=REPO, text=True, capture_output=True)
    assert not done.returncode, done.stderr
    built = " ".join(done.stdout.split())
    fragments = [path for path in FRAGMENTS.iterdir() if not path.name.startswith(".")]
    for path in fragments:
        kind = re.fullmatch(r"(?:\d+|\+\w+)\.(feature|bugfix|doc|removal|misc)(?:\.\d+)?\.rst", path.name)
        assert kind, f"{path.name}: towncrier does not know what it is"
        # of what is of no interest to users it has the number only
        assert kind[1] == "misc" or " ".join(path.read_text().split()) in built
    assert (REPO / "CHANGELOG.rst").read_text().count(".. towncrier release notes start") == 1


def test_the_version_is_the_same_wherever_it_stands():
    """The latest of the change log is the manifest's, and the form's example is one that exists."""
    version = ast.literal_eval((REPO / "bus_alt_connection/__manifest__.py").read_text())["version"]
    released = re.findall(r"^(\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)$", (REPO / "CHANGELOG.rst").read_text(), re.M)
    assert released[0] == version
    assert f"placeholder: {version}, Odoo" in (GITHUB / "ISSUE_TEMPLATE/problem.yml").read_text()
