"""Processes that fork: a child that keeps what its parent had open, and the parent of Odoo's workers.

Takes 2 min.
"""
import contextlib
import itertools
import os
import re
import signal
from pathlib import Path

import psutil
import pytest

from stack.clients.listeners import direct, wait_listening
from stack.clients.state import pass_seconds, wait_healthy
from stack.process import DEADLINE, wait_until

pytestmark = pytest.mark.long

ADDONS = Path(__file__).parent / "addons"
NAMES = itertools.count(1)
WATCHED = 15        # seconds
BUSY = 5            # percent of the time; a listener at rest is far below one


def busy(pid):
    """Seconds that each thread of this process, and of what it started, ran or was ready to run.

    A thread that spins is always one of both, however many others share the processors.
    """
    found = {}
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        for task in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):      # it has ended
                ran, waited, _ = task.read_text().split()
                found[process.pid, task.parent.name] = (int(ran) + int(waited)) / 1e9
    return found


@pytest.mark.parametrize("loss", ["cut", pytest.param("terminated", marks=pytest.mark.newest)])
@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_a_child_without_exec(odoo, bus, postgres, proxy, facts, tmp_path, workers, loss):
    """A job of cron forks one; the connections are lost; nobody spins while the child lives, and all listen again."""
    (tmp_path / "hold").touch()
    server = odoo(workers=workers, load="base,web,bus_alt_connection,bus_test_fork", addons=[ADDONS],
                  env={"BUS_TEST_FOLDER": str(tmp_path)},
                  options={"imdispatcher_db_host": proxy.host, "imdispatcher_db_port": proxy.port})
    client, sender = bus(server)
    names = ["bus", "cron"] if facts.cron_listeners else ["bus"]
    for name in names:
        wait_listening(postgres, server, name)
    wait_healthy(server)
    session = sender.session
    job = session.call_kw("ir.cron", "create", {
        "name": "Fork", "model_id": session.any_model(), "state": "code", "active": True, "interval_number": 1,
        "interval_type": "months", "nextcall": "2000-01-01 00:00:00", **facts.runs_again,
        "code": "env['res.partner'].bus_test_fork()"})
    child = None
    try:
        wait_until((tmp_path / "child").exists, 2 * DEADLINE, "the job does not run")
        child = int((tmp_path / "child").read_text())
        lost = {pid for pid, *_ in direct(postgres, server)}
        if loss == "cut":
            proxy.cut()
        else:
            postgres.query("SELECT pg_terminate_backend(pid) FROM unnest(%s) pid", [list(lost)])
        wait_until(lambda: lost.isdisjoint(pid for pid, *_ in direct(postgres, server)), 10, "nothing is lost")
        for name in names:
            wait_listening(postgres, server, name, timeout=20)
        wait_healthy(server)
        before = busy(server.pid)
        pass_seconds(WATCHED)
        grown = {thread: after - before[thread] for thread, after in busy(server.pid).items() if thread in before}
        assert child in {pid for pid, _ in grown}, "the child has ended"
        share = 100 * max(grown.values()) / WATCHED
        assert share < BUSY, f"a thread runs, or would, {share:.0f} % of the time"
        sender.send_orm("all the same")
        assert client.next().payload == "all the same"
    finally:
        (tmp_path / "hold").unlink()
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)      # it is the test's own: the job started it
        session.call_kw("ir.cron", "write", [job], {"active": False})


@pytest.fixture
def new(stack):
    """A new database with an Odoo in it, which is gone after the test."""
    name = stack.database(f"forks{next(NAMES)}")
    yield name
    stack.drop(name)


@pytest.mark.parametrize("pooled", [True, False], ids=["pooled", "straight"])
def test_the_parent_of_the_workers(stack, odoo, new, pooled):
    """It installs a module that sends meanwhile, and then forks: it has no thread and no connection by then."""
    ports = stack.postgres.port, stack.pgbouncer.port
    server = odoo(new, workers=2, pooled=pooled, load="base,web,bus_alt_connection,bus_test_forks", addons=[ADDONS],
                  env={"BUS_TEST_PORTS": ",".join(map(str, ports))}, args=["-i", "bus_test_sends"])
    sent = stack.postgres.query("SELECT count(*) FROM bus_bus WHERE channel LIKE '%%bus_test_sends%%'", dbname=new)
    assert sent == [(3,)], "the module has not sent"
    found = re.findall(rf" {server.pid} INFO .*It forks with (\d+) other threads and (\d+) connections: (.*)$",
                       server.log_text(), re.M)
    assert found, "it does not fork"
    # the evented process is started by a program, which is no fork that keeps anything
    assert not [one for one in found if one[:2] != ("0", "0")], found
