"""What a newcomer meets: `./dev` from an empty cache where something is missing, closed or full, and Ctrl-C.

Contract: whatever goes wrong is one line that says what to do, and neither a process nor half of a folder is left. The
downloads are those of `mirror`, which are tiny; the demo on a whole new Debian is `./dev fresh`. Takes 60 s.
"""
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stack.base import REPO
from stack.download.cache import cache_folder
from stack.process import wait_until
from tests.workshop.mirror import ALL, ASK, DEADLINE, FETCH, ORJSON, check, ended, finish, left, start

NOBODY = 65534


def dev(*args, env, **kw):
    """`./dev ARGS` in a process group of its own, as a shell starts it."""
    return subprocess.Popen([sys.executable, REPO / "dev", *args], env=env, text=True, start_new_session=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kw)


def refused(process):
    """The one line with which ./dev ended."""
    output = ended(process)
    assert process.returncode == 2 and "Traceback" not in output, output
    line = output.splitlines()[-1]
    assert line.startswith("./dev: ")
    return line, output


def someone():
    """How to start a process as a user without root, with an interpreter that this user may run."""
    if os.geteuid():
        return sys.executable, {}
    for python in (sys.executable, "/usr/bin/python3"):
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        asked = "import sys, stack; sys.exit(sys.version_info < (3, 11))"
        with contextlib.suppress(OSError):
            if not subprocess.run([python, "-c", asked], cwd=REPO, capture_output=True, **user).returncode:
                return python, user
    pytest.skip("NOT TESTED: a user without root can run no Python 3.11 here, or not read this checkout")


# -- where something is missing, closed or full ------------------------------------------------------------------------

def test_without_apt_and_without_postgresql(mirror, folder):
    env = {**mirror.environment(folder / "cache"), "PATH": str(folder)}
    line, _ = refused(dev("demo", env=env))
    assert "PostgreSQL or PgBouncer is missing, and this is not Debian: install it" in line


def test_a_cache_that_cannot_be_made(mirror):
    line, output = refused(dev("demo", env=mirror.environment("/dev/null/cache")))
    assert "cannot write the cache folder /dev/null/cache (Not a directory): set BUS_ALT_CACHE" in output


def test_a_cache_that_cannot_be_written(mirror, folder):
    python, user = someone()
    cache = folder / "cache"
    cache.mkdir(0o555)
    cache.chmod(0o555)
    process = start(python, FETCH, "haproxy", env=mirror.environment(cache), **user)
    output = ended(process)
    assert process.returncode == 1 and "Traceback" not in output
    assert f"cannot write the cache folder {cache} (Permission denied): set BUS_ALT_CACHE to a folder of" in output
    assert os.listdir(cache) == []


def test_a_complete_cache_that_cannot_be_written(mirror, folder):
    """It was filled by root, or is an image's: it serves."""
    python, user = someone()
    if not user:
        pytest.skip("NOT TESTED: takes root, to fill a cache that a user cannot write")
    cache = folder / "cache"
    finish(start(python, ASK, "haproxy", "programs", env=mirror.environment(cache)))
    assert finish(start(python, ASK, "haproxy", "programs", env=mirror.environment(cache), **user)) == \
        "has haproxy\nhas programs\n"


def test_a_user_without_root(mirror, folder):
    python, user = someone()
    cache = folder / "cache"
    cache.mkdir()
    if user:
        os.chown(cache, NOBODY, NOBODY)
    # a home that is not there: nothing is written to it
    env = {**mirror.environment(cache), "HOME": "/nonexistent"}
    finish(start(python, FETCH, *ALL, env=env, **user))
    check(cache)


def test_a_cache_that_postgresql_cannot_read(mirror, folder):
    if os.geteuid():
        pytest.skip("NOT TESTED: takes root, which PostgreSQL refuses")
    closed = folder / "closed"
    closed.mkdir(0o700)
    line, _ = refused(dev("demo", env=mirror.environment(closed / "cache")))
    assert f"{closed} is closed to the user that PostgreSQL runs as in place of root: set BUS_ALT_CACHE" in line
    assert os.listdir(closed) == []


def test_a_cautious_umask(mirror, folder):
    """What root makes with it is still for PostgreSQL's user to read."""
    finish(start(sys.executable, "import os; os.umask(0o077)\n" + ASK, "programs",
                 env=mirror.environment(folder / "cache")))
    program = folder / "cache/programs-postgresql-pgbouncer/usr/sbin/pgbouncer"
    assert all(path.stat().st_mode & 0o005 == 0o005 for path in program.parents if path.is_relative_to(folder))


@pytest.mark.parametrize("thing", ["haproxy", "packages-orjson"])
def test_a_full_disk(mirror, folder, thing):
    """dpkg and pip each say so in their own words."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
               'mount -t tmpfs -o size=24m tmpfs "$0" && "$@"', disk]
    if os.geteuid() or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("NOT TESTED: takes root that may mount a small disk")

    def make(content):
        if thing == "haproxy":
            mirror.package(thing, content)
            mirror.lists()
        else:
            mirror.project("orjson", ORJSON, content)
    make({"usr/share/large": bytes(64_000_000)})
    try:
        process = subprocess.Popen([*command, sys.executable, "-c", FETCH, thing], cwd=REPO, text=True,
                                   env=mirror.environment(disk / "cache"), stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
        output = ended(process)
    finally:
        make({})
    assert process.returncode == 1 and "Traceback" not in output
    assert f"the disk of the cache folder {disk}/cache is full: free some space there" in output


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------

def interrupt(process):
    """What a terminal does at Ctrl-C: it reaches all of them. Returns what was printed."""
    os.killpg(process.pid, signal.SIGINT)
    return ended(process)


def terminate(process):
    """What kill and an init system do: it reaches the first one only."""
    process.terminate()
    return ended(process)


def processes(folder):
    """{id: command line} of the processes that name this folder, in their environment too, or are in it."""
    found, name = {}, str(folder).encode()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):      # it has ended
            known = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
            if name in known + os.readlink(path / "cwd").encode() and int(path.name) != os.getpid():
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def gone(folder):
    """No process is left. What it started has a moment to see that nobody reads it any more."""
    wait_until(lambda: not processes(folder), 5, lambda: f"still running: {processes(folder)}")


@pytest.mark.parametrize("path", ["/dists/stable/*/Packages", "/pool/haproxy.deb", "*/orjson-*.whl"])
@pytest.mark.parametrize("end", [interrupt, terminate])
def test_interrupt_in_a_download(mirror, folder, path, end):
    asked, _ = mirror.hold(path)
    process = start(sys.executable, FETCH, *ALL, env=mirror.environment(folder))
    assert asked.wait(DEADLINE), "nobody asked for it"
    output = end(process)
    assert process.returncode == 130 and "Traceback" not in output
    gone(folder)
    assert left(folder) == []


@pytest.mark.parametrize("command, most", [
    (["demo"], 15), (["test", "--series", "19", "tests/stack/test_health.py", "tests/stack/test_cron.py"], 15),
    (["demo", "from an empty cache"], 4),
], ids=["demo", "test", "first start"])
def test_ctrl_c_at_random_moments(mirror, folder, command, most):
    """With the real servers, from the cache that is there; the tests with several processes; and in the downloads."""
    seed = random.randrange(10 ** 6)
    chance = random.Random(seed)
    first = len(command) == 2
    for number in range(3):
        cache = folder / str(number) if first else cache_folder()
        env = mirror.environment(cache) if first else {**os.environ, "BUS_ALT_CACHE": str(cache)}
        env = {name: value for name, value in env.items() if not name.startswith(("PYTEST_", "ODOO_"))}
        process = dev(*command[:1] if first else command, env={**env, "TMPDIR": str(folder)})
        time.sleep(chance.uniform(0, most))
        output = interrupt(process)
        # 0: it was through; 2: pytest's way to say that it was interrupted, and what the mirror lacks
        well = process.returncode in (130, 0, 2, -signal.SIGINT)
        too_early = "init_import_site" in output or output.strip() == "KeyboardInterrupt"       # it is Python's then
        assert well or too_early, f"seed {seed}: {output}"
        gone(folder)
        assert [name for name in os.listdir(folder) if name.startswith("bus-alt-")] == [], f"seed {seed}: {output}"
        assert not first or not (cache / "making").exists() or left(cache) == [], f"seed {seed}"


# -- .ci/run ----------------------------------------------------------------------------------------------------------

SUITE = """#!/usr/bin/env bash
test -d "$BUS_ALT_CACHE" && test -z "$(ls "$BUS_ALT_CACHE")" && touch "$BUS_ALT_CACHE/file" || exit 9
trap 'kill %1; sleep 0.3; echo interrupted; exit 2' INT
echo "$0 $*: $BUS_ALT_CACHE"
sleep "$SLEEP" & wait $!
exit $CODE
"""


def ci_run(folder, sleep=0, code=0, limit=60):
    """.ci/run with a suite that does nothing: (process, the cache folder that it gave the suite)."""
    (folder / ".ci").mkdir()
    shutil.copy(REPO / ".ci/run", folder / ".ci/run")
    (folder / "dev").write_text(SUITE)
    (folder / "dev").chmod(0o755)
    env = {**os.environ, "SLEEP": str(sleep), "CODE": str(code), "BUS_ALT_LIMIT": str(limit), "TMPDIR": str(folder)}
    process = subprocess.Popen(["bash", folder / ".ci/run"], env=env, text=True, start_new_session=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    command, _, cache = process.stdout.readline().strip().partition(": ")
    assert command == "./dev test --series 19,14"
    return process, Path(cache)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_ci_run_has_a_cache_of_its_own_and_says_how_the_suite_ended(folder, code):
    process, cache = ci_run(folder, code=code)
    ended(process)
    assert process.returncode == code
    assert cache.parent == folder and not cache.exists()
    gone(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ci_run_interrupted(folder, number):
    process, cache = ci_run(folder, sleep=600)
    assert cache.exists()
    process.send_signal(number)
    output = ended(process)
    assert process.returncode == 2 and "interrupted" in output
    assert not cache.exists()
    gone(folder)


def test_ci_run_has_a_limit(folder):
    process, cache = ci_run(folder, sleep=600, limit=1)
    output = ended(process)
    assert process.returncode == 2 and "still running after 1 s" in output
    assert not cache.exists()
    gone(folder)
