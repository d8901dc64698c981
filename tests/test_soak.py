"""Two minutes of ./dev soak; `--seed` of a run that failed is in its message.

Takes 3 min.
"""
import pytest

from bench.soak import Soak


@pytest.mark.timeout(900)
def test_soak(stack):
    with Soak(stack) as soak:
        soak.run(120)
        assert not soak.problems(), f"seed {soak.seed}"
        assert len({fault.name for fault in soak.faults}) > 4
