"""The table of mutations: for each mechanism, how many lives fail without it, and how one of them ends."""
import multiprocessing
import statistics

from . import mutations, story
from .life import Life


def judge(job):
    """Live with one mechanism missing. Returns (its name, seeds that failed in order, the story of the first)."""
    name, first, count = job
    failed, told = [], []
    with mutations.without(name):
        for seed in range(first, first + count):
            life = Life(seed)
            if not life.run():
                failed.append(seed)
                told = told or story.tell(life)
    return name, failed, told


def table(first, count, out=print):
    """Print it. Returns whether each mechanism is missed by a seed."""
    jobs = [(name, first, count) for name in mutations.MECHANISMS]
    missed = True
    out(f"{count} lives each, seeds from {first} on")
    out(f"{'without':24} {'caught':>7} {'median':>7}  the first that fails")
    stories = []
    with multiprocessing.Pool() as pool:
        for name, failed, told in pool.imap(judge, jobs):
            gaps = [after - before for before, after in zip([first - 1, *failed], failed, strict=False)]
            median = f"{statistics.median(gaps):.0f}" if gaps else "-"
            how = told[0] if told else "no seed misses it"
            out(f"{name:24} {len(failed) / count:>7.1%} {median:>7}  {how}", flush=True)
            missed = missed and bool(failed)
            stories.append((name, told))
    for name, told in stories:
        if told:
            out(f"\n{name}:")
            for text in [told[1], *told[-8:]]:
                out(f"  {text}")
    return missed
