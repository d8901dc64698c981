"""The cache: whoever asks first, however many ask at once, and whatever a mirror or a kill does to it.

Contract: from an empty folder everything is made, each thing once; no two processes wait for each other; what a kill
leaves is removed by the next one; a mirror that fails once costs seconds. The first part has makers that do nothing but
have the shape of the real ones, so that all orders can be run; the second has the real ones, with the packages of
`mirror`; all of them, from an empty folder, are made by .ci/run. Every wait has a deadline, which catches a
hang and measures nothing. Takes 40 s.
"""
import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import sys
import threading

import pytest

from stack.base import StackError
from stack.download.cache import Cache, Missing
from tests.workshop.mirror import ALL, ASK, DEADLINE, FETCH, check, ended, finish, left, start

FORK = multiprocessing.get_context("fork")


# -- every order, with makers of the real ones' shape ------------------------------------------------------------------

# what is made: what it needs from the cache, as in stack/
SHAPE = {
    "lists": [],
    "lists-unstable": ["lists"],
    "pip": ["lists"],
    "published": ["pip"],
    "odoo": ["lists", "lists-unstable"],
}


def ask(cache, name, made):
    """Ask for one thing as the functions of stack/ do: with what it needs as needs."""
    def make(folder, work, *needed):
        for path in needed:
            assert (path / "content").read_text() == path.name
        made(name)
        (work / "scratch").touch()
        (folder / "content").write_text(name)
    return cache.made(name, make, *(lambda need=need: ask(cache, need, made) for need in SHAPE[name]))


def run_orders(root, orders, barrier):
    """In a process of its own: one empty cache after the other, each filled in the order that is its turn."""
    for number, order in enumerate(orders):
        cache = Cache(root / str(number))
        barrier.wait(DEADLINE)
        for name in order:
            ask(cache, name, lambda made, cache=cache: (cache.folder / f"made-{made}-{os.getpid()}").touch())


def test_every_order_in_two_processes_at_once(tmp_path):
    orders, barrier = list(itertools.permutations(SHAPE)), FORK.Barrier(2)
    # the other process asks the other way round
    workers = [FORK.Process(target=run_orders, args=(tmp_path, each, barrier), daemon=True)
               for each in (orders, [order[::-1] for order in orders])]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(DEADLINE)
    exits = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    assert exits == [0, 0], "two processes wait for each other (None), or one failed"
    for number in range(len(orders)):
        folder = tmp_path / str(number)
        assert len(list(folder.glob("made-*"))) == len(SHAPE), "something was made twice, or not at all"
        assert {path.parent.name for path in folder.glob("*/.complete")} == set(SHAPE)
        assert not left(folder)


def test_threads_exclude_each_other_as_processes_do(tmp_path):
    made = []
    with concurrent.futures.ThreadPoolExecutor(2 * len(SHAPE)) as pool:
        for name in [*SHAPE, *reversed(SHAPE)]:
            pool.submit(ask, Cache(tmp_path), name, made.append)
    assert sorted(made) == sorted(SHAPE)


def test_asking_in_the_making_is_refused_at_once(tmp_path):
    """What was the deadlock: published, in whose making pip was asked for."""
    cache = Cache(tmp_path)
    ask(cache, "pip", lambda name: None)
    for wanted in ("pip", "lists", "published"):        # complete or not, and itself
        with pytest.raises(RuntimeError, match="name it as a need"):
            cache.made("published", lambda folder, work, wanted=wanted: ask(cache, wanted, lambda name: None))
    assert not cache.has("published") and not left(tmp_path)
    ask(cache, "published", lambda name: None)          # and it is free again


def test_a_cache_that_makes_nothing(tmp_path):
    with pytest.raises(Missing):
        ask(Cache(tmp_path / "new", makes=False), "lists", lambda name: None)
    assert not (tmp_path / "new").exists()


# -- a process that ends in the middle ---------------------------------------------------------------------------------

HALF = """
import sys, time
from stack.download.cache import Cache
def make(folder, work):
    (folder / "half").mkdir()
    (folder / "half" / "file").write_text("half")
    print("in the middle", flush=True)
    time.sleep(600)
Cache(sys.argv[1]).made("thing", make)
"""


def whole(folder, work):
    (folder / "file").write_text("whole")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_ends_in_the_middle(tmp_path, number):
    process = start(sys.executable, HALF, str(tmp_path), env=dict(os.environ))
    try:
        assert process.stdout.readline() == "in the middle\n"
        assert not (tmp_path / "thing").exists()
        Cache(tmp_path).made("another", whole)
        assert list((tmp_path / "making/thing").glob("*/new/half/file")), "it was removed while it was being made"
        waiter = threading.Thread(target=Cache(tmp_path).made, args=("thing", whole))
        waiter.start()
        process.send_signal(number)
        process.wait(DEADLINE)
        waiter.join(DEADLINE)       # its lock went with it
        assert not waiter.is_alive()
    finally:
        process.kill()
        process.communicate()
    assert (tmp_path / "thing" / "file").read_text() == "whole"
    assert not (tmp_path / "thing" / "half").exists()
    Cache(tmp_path).made("a third", whole)      # what a kill left goes with the next making of anything
    assert not left(tmp_path)


def test_a_folder_of_an_older_version_that_is_not_complete(tmp_path):
    """It was made in its place then, and may be a half of one."""
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing" / "half").touch()
    assert os.listdir(Cache(tmp_path).made("thing", whole)) in (["file", ".complete"], [".complete", "file"])


def test_a_maker_that_fails_leaves_nothing(tmp_path):
    def fail(folder, work):
        (folder / "half").touch()
        raise StackError("no network")
    for _ in range(2):
        with pytest.raises(StackError, match="no network"):
            Cache(tmp_path).made("thing", fail)
        assert not (tmp_path / "thing").exists() and not left(tmp_path)


# -- the real makers, on a mirror of tiny packages ---------------------------------------------------------------------

@pytest.mark.parametrize("code, first", [*((ASK, first) for first in ALL), (FETCH, ALL[0])],
                         ids=[*ALL, "all at the same time"])
def test_two_commands_at_once(mirror, folder, code, first):
    order = ALL[ALL.index(first):] + ALL[:ALL.index(first)]
    # the other asks for the same one first, and for the rest the other way round
    both = [start(sys.executable, code, *names, env=mirror.environment(folder))
            for names in (order, order[:1] + order[:0:-1])]
    for process in both:
        finish(process)
    check(folder)
    assert sum(path.endswith("/haproxy.deb") for path in mirror.asked) == 1, "it was downloaded twice"


@pytest.mark.parametrize("how", ["cut", "wrong", 503])
def test_a_mirror_that_fails_once(mirror, folder, how):
    """Debian's for each list and each package; the index of Python packages for a page and for each package."""
    for pattern in ("/dists/*", "/pool/*", "/simple/orjson/", "*.whl"):
        mirror.fail(pattern, how)
    finish(start(sys.executable, FETCH, *ALL, env=mirror.environment(folder)))
    check(folder)


def test_a_mirror_that_fails_for_a_while(mirror, folder):
    """More often than apt asks by itself: ./dev pauses, and asks once more."""
    for path in ("*/Packages", "*/pgbouncer.deb"):
        mirror.fail(path, 503, times=4)
    output = finish(start(sys.executable, ASK, "programs", env=mirror.environment(folder)))
    assert "trying" in output and ("once more" in output or "again" in output)


def test_a_mirror_that_fails_for_good(mirror, folder):
    mirror.fail("*/pgbouncer.deb", 503, times=1000)
    process = start(sys.executable, FETCH, "programs", "haproxy", env=mirror.environment(folder))
    output = ended(process)
    assert process.returncode == 1
    assert "programs: could not download postgresql-15 and pgbouncer: check this machine's apt sources" in output
    assert "error: programs could not be fetched" in output and "Traceback" not in output
    assert not (folder / "programs-postgresql-pgbouncer").exists() and not left(folder)


@pytest.mark.parametrize("path, kill", [
    ("/dists/*/Packages", os.killpg), ("*/orjson-*.whl", os.killpg),
    # the parent alone: its children finish what they do
    ("/pool/haproxy.deb", os.kill)])
def test_kill_in_the_middle_of_a_download(mirror, folder, path, kill):
    asked, go_on = mirror.hold(path)
    process = start(sys.executable, FETCH, *ALL, env=mirror.environment(folder))
    assert asked.wait(DEADLINE), "nobody asked for it"
    kill(process.pid, signal.SIGKILL)
    process.wait(DEADLINE)
    go_on.set()
    mirror.calm()
    finish(start(sys.executable, FETCH, *ALL, env=mirror.environment(folder)))
    check(folder)


def test_what_takes_long_says_how_far_it_is(mirror, folder):
    asked, go_on = mirror.hold("/pool/python3-pip-whl.deb")
    process = start(sys.executable, FETCH, "published-19", env=mirror.environment(folder))
    try:
        lines = list(itertools.takewhile(lambda line: " downloaded" not in line, iter(process.stdout.readline, "")))
        assert any(line.startswith("downloading pip (") for line in lines)
        assert asked.is_set() and process.poll() is None, "it ended without saying how far it was"
    finally:
        go_on.set()
        mirror.calm()
    assert "published-19: ready (" in finish(process)
