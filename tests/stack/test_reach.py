"""The oldest and the newest pooler, each with a PostgreSQL of its time: the bus works there, and heals.

All other pairs are what ./dev matrix runs. The programs of Debian's releases are fetched. Those of Debian unstable are
taken if they are in the cache, where ./dev matrix puts them: they change from day to day. Takes 1 min.
"""
import dataclasses

import pytest

from bench.matrix import NEWEST, OLDEST, RELEASED, Bed, programs, run_cell
from stack.download.cache import Cache, Missing
from stack.machine import Unavailable

# as in ./dev matrix, but for the installation: the database is a copy of one that Odoo made through this pooler
CHECKS = [Bed.copied, Bed.delivered, Bed.terminated, Bed.pooler_restarted, Bed.api, Bed.lost]


@pytest.mark.newest
@pytest.mark.parametrize("pair", [OLDEST, RELEASED, NEWEST], ids=["oldest", "released", "newest"])
def test_a_pair(stack, pair):
    machine = stack.machine
    cache = Cache(machine.cache.folder, makes=pair != NEWEST)
    try:
        programs(dataclasses.replace(machine, cache=cache), *pair)
    except (Missing, Unavailable) as exc:
        pytest.skip(f"NOT TESTED with {pair[0]} and PostgreSQL {pair[1]}: not in the cache ({exc}); "
                    "./dev matrix fetches it")
    cell = run_cell(machine, *pair, checks=CHECKS)
    assert not cell.failed
    assert len(cell.made) == len(CHECKS)
