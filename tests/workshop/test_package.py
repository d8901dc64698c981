"""The wheel: what is in it, and that an Odoo with nothing but it installed beside it has its listener go directly.

Contract: every file of the addon is in the wheel and nothing else is; an Odoo whose addons path does not know this
checkout finds the addon among its interpreter's packages. The same for an installation by the pip and setuptools of
Python 3.6, if that interpreter is here.

Takes 1 min.
"""
import ast
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from stack.clients.listeners import wait_listening
from stack.download.python import pip
from stack.machine import run
from tests.old_python import old_python

REPO = Path(__file__).parents[2]
ADDON = "bus_alt_connection"
INSTALLED = f"odoo/addons/{ADDON}"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout's files, for builds leave folders behind."""
    folder = tmp_path_factory.mktemp("source") / "checkout"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "secrets")
    shutil.copytree(REPO, folder, ignore=ignored)
    (folder / ADDON / "__pycache__").mkdir()
    (folder / ADDON / "__pycache__" / "stale.cpython-36.pyc").touch()
    return folder


@pytest.fixture(scope="module")
def built(source):
    """The folder with the wheel and the source archive, the wheel made from the archive."""
    run([sys.executable, "-m", "build", "--no-isolation", source], "the build failed")
    return source / "dist"


@pytest.fixture(scope="module")
def wheel(built):
    found, = built.glob("*.whl")
    return found


def addon_files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}


def test_the_wheel_holds_the_addon_and_nothing_else(wheel, source):
    wanted = {f"{INSTALLED}/{name}" for name in addon_files(source / ADDON)}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == wanted
    for name in ("__manifest__.py", "static/description/icon.png", "static/description/index.html",
                 "readme/DESCRIPTION.rst", "cli/bus_doctor.py"):
        assert f"{INSTALLED}/{name}" in found


def test_what_the_wheel_says(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info, = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(info).decode()
        licenses = [name for name in archive.namelist() if name.endswith("LICENSE")]
    manifest = ast.literal_eval((REPO / ADDON / "__manifest__.py").read_text())
    for line in ("Name: odoo-bus-alt-connection", f"Version: {manifest['version']}", "Requires-Python: >=3.6",
                 f"Summary: {manifest['summary']}"):
        assert line in metadata.splitlines()
    assert "Requires-Dist" not in metadata
    assert "AGPL-3.0-or-later" in metadata
    # nothing that was not run, and no link that leads nowhere outside of the repository
    assert "OS Independent" not in metadata and "License ::" not in metadata
    description = metadata.partition("\n\n")[2]
    assert "Do I need it?" in description and ".. image::" not in description
    assert not re.search(r"<(?!https?:)[^>\s]+>`__", description)
    assert licenses
    assert wheel.name.endswith("py3-none-any.whl")


def test_the_license_is_whole():
    text = (REPO / "LICENSE").read_text()
    assert "GNU AFFERO GENERAL PUBLIC LICENSE" in text.splitlines()[0]
    assert "13. Remote Network Interaction" in text and "END OF TERMS AND CONDITIONS" in text


def test_an_odoo_runs_from_the_wheel(stack, odoo, postgres, bus, wheel, tmp_path):
    command, env = pip(stack.machine.cache)
    run([*command, "install", "--quiet", "--no-deps", "--no-index", "--target", tmp_path / "packages", wheel],
        "pip could not install the wheel", env=env)
    run_from(tmp_path / "packages", odoo, postgres, bus)


def test_an_odoo_runs_from_an_old_installation(odoo, postgres, bus, source, tmp_path):
    """As Python 3.6 installs it: `pip install .` with its pip 18 and setuptools 40, which run setup.py."""
    python = old_python()
    if not python:
        pytest.skip("no python3.6 with pip and setuptools on this machine")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    copy = tmp_path / "checkout"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("dist", "build", "*.egg-info", "__pycache__"))
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
         "--target", tmp_path / "packages", copy], "pip could not install the checkout", env=env)
    assert addon_files(tmp_path / "packages" / INSTALLED) == addon_files(source / ADDON)
    run_from(tmp_path / "packages", odoo, postgres, bus)


def run_from(packages, odoo, postgres, bus):
    """Start an Odoo that knows the addon from this folder of packages only, and see that its listener goes directly."""
    site = odoo.stack.odoo(name=f"odoo-from-{packages.parent.name}")
    odoo.started.append(site)
    site.addons_path = lambda extra=(): ",".join([*site.source.addons, *map(str, extra)])
    code = site.source.env["PYTHONPATH"]
    site.start("demo", env={"PYTHONPATH": f"{code}{os.pathsep}{packages}"})
    config = (site.folder / "odoo.conf").read_text()
    assert str(REPO) not in config and str(site.folder / "addons") not in config
    assert not (site.folder / "addons").exists()
    client, sender = bus(site)
    wait_listening(postgres, site, "bus")
    sender.send_orm("from the package")
    assert client.next().payload == "from the package"
