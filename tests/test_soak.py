"""Two minutes of ./dev soak; `--seed` of a run that failed is in its message."""
import pytest
from soak import Soak


@pytest.mark.parametrize("workers", [2], ids=["prefork"])
def test_soak(stack, workers):
    with Soak(stack, workers=workers) as soak:
        soak.run(120)
        assert not soak.problems(), f"seed {soak.seed}"
        assert len({fault.name for fault in soak.faults}) > 4
