"""The oldest and the newest pooler, each with a PostgreSQL of its time: the bus works there, and heals.

All other pairs are what ./dev matrix runs; it fetches the programs, too, without which these are skipped. Takes 40 s.
"""
import dataclasses

import pytest

from bench.matrix import NEWEST, OLDEST, Bed, programs, run_cell
from stack.cache import Cache, Missing
from stack.machine import Unavailable

# as in ./dev matrix, but for the installation: the database is a copy of one that Odoo made through this pooler
CHECKS = [Bed.copied, Bed.delivered, Bed.terminated, Bed.pooler_restarted, Bed.api, Bed.lost]


@pytest.mark.newest
@pytest.mark.parametrize("pair", [OLDEST, NEWEST], ids=["oldest", "newest"])
def test_a_pair(stack, pair):
    machine = stack.machine
    try:
        programs(dataclasses.replace(machine, cache=Cache(machine.cache.folder, makes=False)), *pair)
    except (Missing, Unavailable) as exc:
        pytest.skip(f"NOT TESTED with {pair[0]} and PostgreSQL {pair[1]}: {exc} is not in the cache, ./dev matrix "
                    "fetches it")
    cell = run_cell(machine, *pair, checks=CHECKS)
    assert not cell.failed
    assert len(cell.made) == len(CHECKS)
