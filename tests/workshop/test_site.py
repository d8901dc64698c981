"""The site of the README and of docs/ builds without a warning, and a link that leads nowhere is one.

Takes 30 s.
"""
import re
import shutil
import subprocess

import pytest

from stack.base import StackError
from stack.download.cache import Cache, cache_folder
from stack.download.python import environment
from tests.documents import PAGES, REPO


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    try:
        python = environment(Cache(cache_folder()), ["docs"])
    except StackError as exc:
        pytest.skip(f"NOT TESTED: {exc}")
    folder = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "secrets")
    shutil.copytree(REPO, folder / "checkout", ignore=ignored)

    def build():
        command = [python, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", "docs", ".", "build/site"]
        return subprocess.run(command, cwd=folder / "checkout", text=True, capture_output=True)
    build.folder = folder / "checkout"
    return build


def test_it_builds_without_a_warning(build):
    done = build()
    assert not done.returncode and not done.stderr, done.stderr
    site = build.folder / "build/site"
    for page in PAGES:
        assert (site / page.relative_to(REPO)).with_suffix(".html").exists(), page
    front = (site / "index.html").read_text()
    links = re.findall(r'href="([^"]*)"', front)
    assert "docs/upgrading.html" in links and not [link for link in links if link.endswith(".rst")]
    # files that a page leads to are taken along
    assert (site / "docs/monitoring/alerts.yml").exists()


def test_a_link_that_leads_nowhere_is_an_error(build):
    with open(build.folder / "docs/faq.rst", "a") as page:
        page.write("\nSee `nothing <nowhere.rst>`__.\n")
    done = build()
    assert done.returncode and "no such file: nowhere.rst" in done.stderr
