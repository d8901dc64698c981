"""Lives of the addon's own code in virtual time: what must hold holds, and a seed gives the same history everywhere."""
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import mutations, story
from .__main__ import live, main
from .life import Life
from .standins import UnknownStatement, addon, load

REPO = Path(__file__).parents[2]
LIVES = 300


def test_lives():
    """The same ones each time: they are for the moment between two edits. New ones: test_new_lives.py."""
    size = 25
    jobs = [(range(first, first + size), None, False) for first in range(1, LIVES + 1, size)]
    with multiprocessing.Pool() as pool:
        failed = [(seed, broken) for found, _ in pool.imap(live, jobs) for seed, broken, _ in found if broken]
    assert not failed, "./dev simulate --seed N tells what happened"


DIGEST = """
import hashlib
from tests.simulation.life import Life
for seed in {seeds}:
    life = Life(seed)
    life.run()
    print(hashlib.sha256(repr(life.history).encode()).hexdigest())
"""


def digests(seeds, hash_seed):
    done = subprocess.run([sys.executable, "-c", DIGEST.format(seeds=seeds)], cwd=REPO, text=True, capture_output=True,
                          env={**os.environ, "PYTHONHASHSEED": hash_seed})
    assert not done.returncode, done.stderr
    return done.stdout.split()


def test_a_seed_gives_the_same_history():
    """In any process, whatever the order of sets, and whatever was lived before."""
    seeds = list(range(401, 407))
    first = digests(seeds, "1")
    assert len(set(first)) == len(seeds)
    assert digests(seeds[::-1], "2")[::-1] == first


@pytest.mark.parametrize("mechanism, seeds", [("heartbeat", 40), ("look", 40)])
def test_a_missing_mechanism_is_missed(mechanism, seeds):
    with mutations.without(mechanism):
        assert not all(Life(seed).run() for seed in range(1, seeds))


def test_a_failing_life_is_a_story_and_a_status(capsys):
    """At most a screen; without the mechanism that was taken away the same seed passes."""
    with mutations.without("heartbeat"):
        seed = next(seed for seed in range(1, 100) if not Life(seed).run())
    assert main(["--seed", str(seed), "--without", "heartbeat"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert "no NOTIFY reaches it" in told[0] and 3 < len(told) <= story.LINES + 3
    assert main(["--seed", str(seed)]) == 0


def test_an_unknown_statement_ends_the_life(monkeypatch):
    """The model does not guess what a statement does."""
    load()
    monkeypatch.setattr(addon.session, "PREPARE", "PREPARE something AS SELECT 1")
    life = Life(1)
    monkeypatch.setattr(addon.session, "PREPARE", "PREPARE something AS SELECT 2")
    with pytest.raises(UnknownStatement):
        life.run()


def test_the_model_is_small_enough_to_be_read():
    world = ("network", "postgres", "pooler", "clients")
    lines = sum(len((Path(__file__).parent / f"{name}.py").read_text().splitlines()) for name in world)
    assert lines <= 1150
