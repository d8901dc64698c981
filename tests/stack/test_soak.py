"""Some faults of ./dev soak, one after the other, under load; `--seed` of a run that failed is in its message.

Takes 2 min.
"""
import pytest

from bench import soak

# the quick ones, and those that no other test has under load
FAULTS = ["malformed_rows", "unlistened", "names_lost", "pooler_killed_before_a_notify", "database_dropped",
          "sender_killed_before_a_notify", "listeners_come_and_go"]
# A long poll may miss a NOTIFY and look again after 50 s, which the end waits for.
FEW = ["malformed_rows", "unlistened", "pooler_killed_before_a_notify"]


@pytest.mark.timeout(600)
def test_soak(stack, facts):
    with soak.Soak(stack, workers=2, listeners=4, rest=1) as run:
        run.begin()
        for name in FAULTS if facts.client == "WebSocket" else FEW:
            run.strike(name)
        run.end()
        assert not run.problems(), f"seed {run.seed}"
        assert run.total.sent > 100
        assert soak.title(FEW[-1]) in soak.rst(run)


def test_every_fault_has_its_reason():
    names = [name.removeprefix("fault_") for name in dir(soak.Soak) if name.startswith("fault_")]
    assert set(map(soak.title, names)) == soak.REASONS.keys()
