"""The fault kit's network namespace: each has a net of its own, whatever else is on this machine.

Takes 1 s.
"""
import socket
import subprocess

import pytest

from stack import StackError
from stack.faults.network import Island

pytestmark = pytest.mark.skipif(Island.why_not() is not None, reason=str(Island.why_not()))


@pytest.fixture
def nets(monkeypatch):
    """Two nets that nobody uses, the only ones there are."""
    with Island() as one, Island() as other:
        free = sorted(int(island.address.split(".")[2]) for island in (one, other))
    monkeypatch.setattr(Island, "NETS", free)
    return free


def reaches(island):
    with socket.socket() as target:
        target.bind(("127.0.0.1", 0))
        target.listen()
        proxy = island.serve(target.getsockname())
        with socket.create_connection((proxy.host, proxy.port), timeout=5), target.accept()[0]:
            return proxy.accepted == 1


def test_two_at_once_have_a_net_each(nets):
    with Island() as one, Island() as other:
        assert one.address != other.address
        assert reaches(one) and reaches(other)
        with pytest.raises(StackError, match="no net"), Island():
            pass


def test_a_net_that_somebody_uses_is_left_alone(nets):
    """A run that was killed leaves its cable behind."""
    used, free = nets
    subprocess.run(["ip", "route", "add", "blackhole", f"10.213.{used}.0/30"], check=True)
    try:
        with Island() as island:
            assert island.address == f"10.213.{free}.2"
            assert reaches(island)
    finally:
        subprocess.run(["ip", "route", "del", "blackhole", f"10.213.{used}.0/30"], check=True)
