"""A planned switchover of a real Patroni: nothing is lost, nobody gets an error after a commit, all is instant again.

The other faults, and the other setups beside this addon, are what ./dev failover runs. Takes 1 min.
"""
import pytest

from bench.failover import failover
from stack import Stack
from stack.download.programs import patroni
from stack.machine import Unavailable
from stack.servers.patroni import Cluster


def test_a_switchover(stack, facts):
    if facts.client != "WebSocket":
        pytest.skip(f"the bench's clients are websockets, which {facts} has not")
    try:
        patroni(stack.machine.cache)
    except Unavailable as exc:
        pytest.skip(f"NOT TESTED with Patroni: {exc}")
    with Stack(machine=stack.machine) as own:
        own.database("demo")
        with Cluster(own) as cluster:
            before = cluster.primary()
            outcome, = failover(own, cluster, ["switched"], ["addon"], watch=45)
            assert cluster.primary() is cluster.other(before)
    assert outcome.without > 0, "it is not the switchover that was measured"
    assert outcome.instant is not None and outcome.instant - outcome.without < 15
    assert not outcome.lost and not outcome.errors
