"""Some faults of ./dev soak, one after the other, under load; `--seed` of a run that failed is in its message.

Takes 2 min.
"""
import pytest

from bench import soak

# the quick ones, and those that no other test has under load
FAULTS = ["malformed_rows", "unlistened", "names_lost", "pooler_killed_before_a_notify", "database_dropped",
          "sender_killed_before_a_notify", "listeners_come_and_go"]


@pytest.mark.timeout(600)
def test_soak(stack, facts):
    with soak.Soak(stack, workers=2, listeners=4, rest=1) as run:
        run.begin()
        for name in FAULTS:
            # a long poll lasts 50 s, after which it finds what nobody was notified of
            if facts.client == "WebSocket" or name != "sender_killed_before_a_notify":
                run.strike(name)
        run.end()
        assert not run.problems(), f"seed {run.seed}"
        assert run.total.sent > 100
        assert soak.title(FAULTS[-1]) in soak.rst(run)


def test_every_fault_has_its_reason():
    names = [name.removeprefix("fault_") for name in dir(soak.Soak) if name.startswith("fault_")]
    assert set(map(soak.title, names)) == soak.REASONS.keys()
