"""The primary moves, with a real Patroni: nothing is lost, nobody gets an error after a commit, all receive again.

By a planned switchover, and because the primary is killed; with HAProxy in front, and with all hosts in one setting, as
docs/failover.rst has both. The other faults, and other setups beside this addon, are what ./dev failover runs. Takes
2 min.
"""
import pytest

from bench.failover import failover
from stack import Stack
from stack.download.programs import patroni
from stack.machine import Unavailable
from stack.servers.patroni import Cluster

pytestmark = pytest.mark.long


@pytest.mark.timeout(600)
def test_a_primary_that_moves(stack, facts):
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
            outcomes = list(failover(own, cluster, ["switched", "killed"], ["addon", "hosts"], watch=60))
            assert cluster.primary() is before      # it was moved away, and the other one was killed
    assert len(outcomes) == 4
    for outcome in outcomes:
        assert outcome.without > 0, "it is not the fault that was measured"
        # when all are instant again is what ./dev failover measures, with the machine to itself
        assert outcome.first is not None and outcome.first - outcome.without < 15
        assert not outcome.lost and not outcome.errors
