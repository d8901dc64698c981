"""How often a listener tries, how much it says meanwhile, and that it never ends."""
import re
import resource
import time
from pathlib import Path

import pytest

from stack.clients.flow import Flow
from stack.clients.listeners import direct, wait_listening
from stack.clients.state import DEGRADED, instant, lines, pass_seconds, wait_failing, wait_healthy
from stack.faults.network import Proxy
from stack.process import DEADLINE, children, wait_until

newest = pytest.mark.newest
ADDONS = Path(__file__).parent / "addons"
WATCHED = 15        # seconds


@pytest.fixture
def counted(stack):
    """The way to PostgreSQL, which counts who comes."""
    proxy = Proxy((stack.postgres.host, stack.postgres.port))
    yield proxy
    proxy.close()


@pytest.mark.parametrize("broken, mended", [
    ("PASSWORD 'another'", "PASSWORD 'right'"), pytest.param("NOLOGIN", "LOGIN", marks=newest),
    pytest.param("CONNECTION LIMIT 0", "CONNECTION LIMIT -1", marks=newest)])
def test_what_only_a_person_can_mend(stack, odoo, postgres, counted, broken, mended):
    """Is tried about once in 5 s, and works soon after it was mended."""
    postgres.query("CREATE ROLE direct LOGIN PASSWORD 'right'")
    postgres.query(f"ALTER ROLE direct {broken}")
    try:
        server = odoo(options={
            "imdispatcher_db_host": counted.host, "imdispatcher_db_port": counted.port, "max_cron_threads": 0,
            "imdispatcher_db_user": "direct", "imdispatcher_db_password": "right"})
        with Flow(server, stack.pgbouncer, postgres, every=1.0) as flow:
            wait_until(lambda: counted.accepted, 20, "nobody tries")
            wait_failing(server)
            before = counted.accepted
            pass_seconds(WATCHED)
            tried = counted.accepted - before
            assert 1 <= tried <= 5, f"{tried} attempts in {WATCHED} s"
            assert flow.slowest() < DEGRADED
            postgres.query(f"ALTER ROLE direct {mended}")
            wait_listening(postgres, server, "bus", timeout=10)
            instant(flow)
            flow.check()
        server.kill()
    finally:
        postgres.query("DROP ROLE direct")


def test_attempts_are_spread(stack, odoo, postgres, counted):
    """Several listeners that failed at the same time do not go on in step."""
    postgres.query("CREATE ROLE direct LOGIN PASSWORD 'another'")
    try:
        server = odoo(options={
            "imdispatcher_db_host": counted.host, "imdispatcher_db_port": counted.port, "max_cron_threads": 0,
            "imdispatcher_db_user": "direct", "imdispatcher_db_password": "right"})
        with Flow(server, stack.pgbouncer, postgres, every=1.0):
            wait_until(lambda: counted.accepted, 20, "nobody tries")
            times = []
            for _ in range(5):
                before = counted.accepted
                wait_until(lambda before=before: counted.accepted > before, 15, "it has given up")
                times.append(time.monotonic())
            pauses = [after - before for before, after in zip(times, times[1:], strict=False)]
            assert max(pauses) - min(pauses) > 0.1, pauses
            assert 2 < max(pauses) < 8, pauses
        server.kill()
    finally:
        postgres.query("DROP ROLE direct")


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_a_connection_that_flaps(stack, odoo, counted, workers):
    """It comes and goes twice a second: a handful of lines, not one each time; and nothing is lost."""
    server = odoo(workers=workers, options={"imdispatcher_db_host": counted.host, "max_cron_threads": 0,
                                            "imdispatcher_db_port": counted.port})
    with Flow(server, stack.pgbouncer, stack.postgres) as flow:
        wait_listening(stack.postgres, server, "bus")
        wait_healthy(server)
        since, accepted = server.log_size(), counted.accepted
        for _ in range(2 * WATCHED):
            counted.cut()
            pass_seconds(0.5)
        assert counted.accepted > accepted + 5, "nothing flapped"
        said = lines(server, "bus listener", since)
        assert len(said) <= 6, f"{len(said)} lines, the first of them {said[:6]}"
        wait_healthy(server)
        instant(flow)
        flow.check()


def process_of(stack, server, name):
    """The process that has the listener of this name: PostgreSQL shows its id."""
    (_, application, _, _), = direct(stack.postgres, server, name)
    return int(re.search(r"\d+$", application)[0])


# not a cron worker of the prefork server: Odoo's own code in it opens a file at each turn, and ends the process
@pytest.mark.parametrize("name, workers", [("bus", 0), ("bus", 2), ("cron", 0)])
def test_too_many_open_files(stack, odoo, facts, name, workers):
    """For a while its process can open nothing, no socket and nothing to wait with: it goes on trying."""
    if name == "cron" and not facts.cron_listeners:
        pytest.skip(f"{facts} has no cron listeners")
    server = odoo(workers=workers)
    with Flow(server, stack.pgbouncer, stack.postgres) as flow:
        wait_listening(stack.postgres, server, "bus")
        before, = wait_listening(stack.postgres, server, name)
        wait_healthy(server)
        pid = process_of(stack, server, name)
        assert pid in (server.pid, *children(server.pid))
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
        # what is open stays open, and nothing new can be, not even in the place of what was closed
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            stack.postgres.query("SELECT pg_terminate_backend(%s)", [before])
            wait_listening(stack.postgres, server, name, count=0)
            pass_seconds(10)
            assert not direct(stack.postgres, server, name)
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        after, = wait_listening(stack.postgres, server, name, timeout=15)
        assert after != before
        assert process_of(stack, server, name) == pid
        wait_healthy(server)
        instant(flow)
        flow.check()
        assert len(list(Path(f"/proc/{pid}/task").iterdir())) <= threads + 1, "threads are left behind"


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_no_thread_is_to_be_had(odoo, bus, postgres, facts, tmp_path, workers):
    """From the start on: Odoo serves all the same, every listener goes on trying, and nothing is lost."""
    full = tmp_path / "full"
    full.touch()
    server = odoo(workers=workers, load="base,web,bus_alt_connection,bus_test_no_thread", addons=[ADDONS],
                  env={"BUS_TEST_FOLDER": str(tmp_path)})
    client, sender = bus(server)
    server.wait_log("The loop of the bus failed and goes on(?s:.*)can't start new thread")
    if facts.cron_listeners and not workers:
        server.wait_log("A cron thread failed .can't start new thread. and goes on")
    sender.send_sql("for later")
    pass_seconds(5)
    assert not direct(postgres, server)
    full.unlink()
    wait_listening(postgres, server, "bus", timeout=15)
    if facts.cron_listeners:
        wait_listening(postgres, server, "cron")    # that of a worker which its server has started again
    assert client.next(DEADLINE).payload == "for later"
    wait_healthy(server)
    sender.send_sql("now")
    assert client.next().payload == "now"
