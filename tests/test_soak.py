"""Two minutes of ./dev soak; `--seed` of a run that failed is in its message."""
from bench.soak import Soak


def test_soak(stack):
    with Soak(stack) as soak:
        soak.run(120)
        assert not soak.problems(), f"seed {soak.seed}"
        assert len({fault.name for fault in soak.faults}) > 4
