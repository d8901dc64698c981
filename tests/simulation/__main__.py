"""./dev simulate: lives of the addon in virtual time. Exit status 1 if one fails.

  --seeds COUNT         so many lives, with new seeds each time (default: 1000)
  --from N              with these seeds: N, N + 1, ...
  --seed N              this life, told as a story
  --without MECHANISM   the addon without one of its mechanisms
  --mutations           a table: which seeds miss each mechanism
  --minutes M           go on for so long
"""
import argparse
import multiprocessing
import os
import random
import sys
import time
import traceback

from . import mutations, story
from .life import SECONDS, Life


def live(job):
    """Live some lives. Returns [(seed, what broke or None, counts)] and the seconds of processor time."""
    seeds, without, stop = job
    began, found = time.process_time(), []
    with mutations.without(without):
        for seed in seeds:
            life = Life(seed)
            life.run()
            found.append((seed, life.broken, life.counts))
            if stop and life.broken:
                break
    return found, time.process_time() - began


def tell(seed, without, out=print, defect=True):
    with mutations.without(without):
        life = Life(seed)
        life.run()
    for text in story.tell(life):
        out(text)
    if defect and life.exception is not None:
        traceback.print_exception(life.exception)
    return life.broken is None


def run(first, count, minutes, without):
    """Live them on all processors, and sum up."""
    deadline = time.monotonic() + minutes * 60 if minutes else None
    size = 50
    totals, failed, lives, spent = {}, [], 0, 0.0

    def jobs():
        seed = first
        while seed < first + count if deadline is None else time.monotonic() < deadline:
            last = seed + size if deadline is not None else min(seed + size, first + count)
            yield range(seed, last), without, False
            seed = last
    print(f"seeds from {first} on" + (f", without {without}" if without else ""), flush=True)
    with multiprocessing.Pool() as pool:
        for found, seconds in pool.imap_unordered(live, jobs()):
            spent += seconds
            for seed, broken, counts in found:
                lives += 1
                for name, value in counts.items():
                    totals[name] = totals.get(name, 0) + value
                if broken:
                    failed.append((seed, broken))
                    print(f"  seed {seed}: {broken}", flush=True)
    years = lives * SECONDS / 86400 / 365.25
    print(f"{lives} lives ({years:.2f} virtual years): "
          + ", ".join(f"{value} {name}" for name, value in totals.items()))
    print(f"{lives / spent * 60:.0f} lives a minute and core; {len(failed)} failed")
    if failed:
        tell(min(failed)[0], without)
    return not failed


def main(args):
    parser = argparse.ArgumentParser(prog="./dev simulate", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1000, metavar="COUNT")
    parser.add_argument("--from", type=int, dest="first", metavar="N")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--without", choices=sorted(mutations.MECHANISMS), metavar="MECHANISM")
    parser.add_argument("--mutations", action="store_true")
    given = parser.parse_args(args)
    if given.mutations:
        from .table import table
        return 0 if table(given.first or 1, given.seeds) else 1
    if given.seed is not None:
        return 0 if tell(given.seed, given.without) else 1
    first = given.first if given.first is not None else random.SystemRandom().randrange(10**6) * 1000
    return 0 if run(first, given.seeds, given.minutes, given.without) else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main(sys.argv[1:]))
