"""What is not needed is not loaded: each process of a server is asked for its modules.

Takes 30 s.
"""
from pathlib import Path

import pytest

from stack.process import DEADLINE, children, free_port, wait_until

ADDONS = Path(__file__).parent / "addons"
ADDON = "odoo.addons.bus_alt_connection"
# without a metrics port, queue_job and doctor
NEVER = {"observe.metrics", "observe.cluster", "doctor", "queue_job"}
CORE = {"listener", "recovery", "notifier", "routing", "dispatcher"}


@pytest.fixture
def loaded(odoo, bus, tmp_path):
    """`loaded(workers, **more)`: [the addon's modules] of each process of a server that has delivered a message."""
    def loaded(workers, **more):
        server = odoo(workers=workers, load="base,web,bus_alt_connection,bus_test_loaded", addons=[ADDONS],
                      env={"BUS_TEST_FOLDER": str(tmp_path)}, **more)
        client, sender = bus(server)
        sender.send_orm("here")
        assert client.next().payload == "here"
        for path in tmp_path.iterdir():
            path.unlink()       # from before
        pids = [server.pid, *children(server.pid)]
        files = [tmp_path / f"loaded-{pid}" for pid in pids]
        wait_until(lambda: all(path.exists() for path in files), DEADLINE, lambda: f"not all of {files}")
        whole = [set(path.read_text().splitlines()) for path in files]
        assert all("odoo.http" in modules for modules in whole)
        return [{name[len(ADDON) + 1:] for name in modules if name.startswith(ADDON + ".")} for modules in whole]
    return loaded


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_what_is_not_needed_is_not_loaded(loaded, facts, workers):
    found = loaded(workers)
    assert len(found) >= (4 if workers else 1)
    mends, others = {"mends.websockets", "mends.history"}, {"mends.long_polls"}
    if facts.client != "WebSocket":
        mends, others = others, mends
    for modules in found:
        assert modules >= CORE | mends and not modules & (NEVER | others)


def test_metrics_are_loaded_with_their_port(loaded):
    """So that the test above can fail."""
    modules, = loaded(0, options={"imdispatcher_metrics_port": free_port()})
    assert "observe.metrics" in modules
