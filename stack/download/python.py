"""A Python environment for Odoo and for the tests, and addons that others published, by pip.

Contract: `environment(cache, groups)` is the interpreter of a virtual environment that sees what
stack/requirements-<group>.txt pins, and nothing else. Each group is a folder of the cache, installed as a whole and
never changed: another pin makes another folder. pip is the machine's, or else Debian's, which needs no installation.
"""
import hashlib
import os
import re
import subprocess
import sys
import time
import zipfile

from ..base import HERE, StackError, is_full, progress, run, say
from .apt import PAUSE, Apt, need_debian, package_lists, unpack

GROUPS = ("odoo", "test", "browser", "figures", "orjson", "docs")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PUBLISHED = "odoo-addon-bus-alt-connection"
# OCA's queue_job: series -> what pip is asked for
QUEUE_JOB = {19: "odoo-addon-queue-job==19.0.2.4.0.1", 14: "odoo14-addon-queue-job==14.0.3.15.1"}


def pip(cache):
    """The command and the environment that run pip. It is for this interpreter, whose environment may have none."""
    # what is complete is not downloaded again after a kill in the middle
    env = {"PIP_CACHE_DIR": str(cache.folder / "pip-cache"), **os.environ,
           "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_ROOT_USER_ACTION": "ignore"}
    own = [os.path.realpath(sys.executable), "-m", "pip"]
    if os.environ.get("BUS_ALT_PROGRAMS") != "download" and \
            subprocess.run([*own, "--version"], capture_output=True).returncode == 0:
        return own, env

    name = "debian-pip"

    def make(folder, work, lists):
        unpack("pip", Apt(lists, work).download("pip", ["python3-pip-whl", "ca-certificates"]), work / "debian")
        with zipfile.ZipFile(max((work / "debian").glob("usr/share/python-wheels/pip-*.whl"))) as wheel:
            wheel.extractall(folder)
        certificates = sorted((work / "debian/usr/share/ca-certificates").rglob("*.crt"))
        (folder / "ca.pem").write_text("".join(path.read_text() for path in certificates))
        # Debian's pip reads the system's certificates only, which a bare machine has not got
        core = folder / "pip/_vendor/certifi/core.py"
        core.write_text(core.read_text().replace(
            f"'{CERTIFICATES}'", f"__import__('os').path.exists('{CERTIFICATES}') and '{CERTIFICATES}' or "
                                 f"'{cache.folder / name / 'ca.pem'}'"))

    need_debian("this Python has no pip")
    return [sys.executable, cache.made(name, make, lambda: package_lists(cache)) / "pip"], env


def run_pip(how, work, what, *args, count=None):
    """`pip *args`, again if it fails. `what`: for the user. `count`: how many packages pip is going to name."""
    command, env = how
    # what it unpacks goes where it is removed with the rest
    env = {**env, "TMPDIR": str(work)}
    # the last time without what earlier ones kept, should that be what is wrong
    for more in ([], [], ["--no-cache-dir"]):
        named = []

        def seen(line, named=named):
            if line.startswith(("Collecting ", "Processing ")):
                named.append(line)

        try:
            with progress(lambda named=named: count and f"{what}: {len(named)} of {count} packages downloaded"
                          + ", installing them" * (len(named) == count)):
                run([*command, *args, *more], f"pip could not get {what}: check the network and pip's settings",
                    seen=seen, env=env)
            return
        except StackError as exc:
            if more or is_full(exc):
                raise
            say(f"{exc}: trying again in {PAUSE} s")
            time.sleep(PAUSE)


def interpreter():
    """What a package was installed for: another interpreter has other wheels."""
    return sys.version + os.path.realpath(sys.executable)


def short(*parts):
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def packages(cache, group):
    """The folder with what requirements-<group>.txt pins."""
    wanted = HERE / f"requirements-{group}.txt"
    text = wanted.read_text()

    def make(folder, work, how):
        count = len(re.findall(r"^\w.*==", text, re.M))
        say(f"downloading the {count} Python packages of stack/{wanted.name}")
        # all of them are pinned, so pip has nothing to resolve
        run_pip(how, work, f"stack/{wanted.name}", "install", "--no-deps", "--prefer-binary", "--progress-bar=off",
                "--target", folder, "-r", wanted, count=count)
    return cache.made(f"packages-{group}-{short(interpreter(), text)}", make, lambda: pip(cache))


def environment(cache, groups):
    """The python of a virtual environment that holds what stack/requirements-<group>.txt names."""
    folders = [packages(cache, group) for group in groups]

    def make(folder, work):
        run([sys.executable, "-m", "venv", "--without-pip", folder],
            "could not make a virtual environment: install Python 3 with its standard library")
        for script in folder.glob("bin/[aA]ctivate*"):
            script.unlink()         # they hold the path where it was made
        site, = folder.glob("lib/python*/site-packages")
        (site / "groups.pth").write_text("".join(f"../../../../{path.name}\n" for path in folders))
    name = f"venv-{short(interpreter(), *(path.name for path in folders))}"
    return cache.made(name, make) / "bin" / "python"


def published(cache, series):
    """The published addon of this series: (addons folder, its version)."""
    return from_index(cache, f"published-{series}", f"{PUBLISHED}=={series}.0.*")


def queue_job(cache, series):
    """OCA's queue_job of this series: (addons folder, its version)."""
    return from_index(cache, QUEUE_JOB[series].replace("==", "-"), QUEUE_JOB[series])


def from_index(cache, name, wanted):
    """An addon of the package index: (addons folder, its version)."""
    def make(folder, work, how):
        run_pip(how, work, wanted, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder, wanted)
        wheel, = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    folder = cache.made(name, make, lambda: pip(cache))
    wheel, = folder.glob("*.whl")
    return folder / "odoo" / "addons", wheel.name.split("-")[1]
