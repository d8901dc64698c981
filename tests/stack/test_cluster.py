"""What PostgreSQL has of the listeners, cron workers included: the metrics of the whole, and the health of the host.

Takes 2 min.
"""
import contextlib
import os
import re
import signal
import socket
import statistics
import threading
import time

import pytest
import requests

from stack.clients.listeners import direct, wait_listening
from stack.clients.state import ROUTE, health, wait_healthy
from stack.process import DEADLINE, free_port, wait_until
from tests.stack.test_metrics import scrape, wait_metric

BEAT = 1            # seconds
SCRAPE = 10         # seconds, after which Prometheus gives up
QUICK = 0.2         # seconds, half of the answers


@pytest.fixture
def watched(odoo):
    """A server whose metrics are asked at `server.metrics`."""
    def start(workers=2, **kw):
        port = free_port()
        server = odoo(workers=workers, options={"imdispatcher_metrics_port": port, **kw},
                      env={"IMDISPATCHER_HEARTBEAT_SECONDS": str(BEAT)})
        server.metrics = port
        return server
    return start


def of_host(server):
    answer = requests.get(f"{server.evented_url}{ROUTE}?scope=host", timeout=DEADLINE)
    return answer.status_code, answer.json()


def metric(server, name, *labels):
    return scrape(server.metrics).get((name, *labels))


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_the_listeners_of_a_host_and_of_the_cluster(watched, bus, postgres, facts, workers):
    server, other = watched(workers, max_cron_threads=2), watched(workers)
    crons = 2 if facts.cron_listeners else 0
    for one in (server, other):
        bus(one)
        wait_listening(postgres, one, "bus")
    wait_listening(postgres, server, "cron", crons)
    wait_listening(postgres, other, "cron", crons // 2)
    wait_metric(server.metrics, "listeners_expected", 1)
    wait_until(lambda: metric(server, "listeners_present", "bus", "cluster") == 2, DEADLINE,
               lambda: f"not both are seen: {scrape(server.metrics)}")
    said = scrape(server.metrics)
    assert said["listeners_expected", "cron"] == said["listeners_present", "cron", "host"] == crons
    assert said["listeners_present", "bus", "host"] == 1
    assert said["listeners_present", "cron", "cluster"] == crons + crons // 2
    for name in ("bus", "cron")[:1 + bool(crons)]:
        assert said["listeners_silent_seconds", name, "host"] < 3 * BEAT
    assert 0 <= said["notify_queue_usage_ratio", None] < 0.1
    assert of_host(server) == (200, {"status": "pass", "state": "listening"})
    # the name that this is told by
    assert {name.split()[3] for _, name, _, _ in direct(postgres, server)} == {socket.gethostname()[-24:]}


@pytest.mark.needs("cron_listeners")
def test_a_cron_worker_that_is_stuck_and_then_gone(watched, bus, postgres):
    server = watched()
    bus(server)
    backend, = wait_listening(postgres, server, "cron")
    wait_healthy(server)
    wait_until(lambda: of_host(server)[0] == 200, DEADLINE, lambda: of_host(server))
    (_, name, _, _), = direct(postgres, server, "cron")
    with stopped(int(re.search(r"\d+$", name)[0])):
        wait_until(lambda: metric(server, "listeners_silent_seconds", "cron", "host") > 4 * BEAT, DEADLINE,
                   "nobody sees that it is silent")
        assert of_host(server)[0] == 200, "it is still there"
        postgres.query("SELECT pg_terminate_backend(%s)", [backend])
        wait_until(lambda: of_host(server)[0] == 503, DEADLINE, "nobody sees that it is gone")
        said = of_host(server)[1]
        assert (said["status"], said["cause"]) == ("fail", "cron listener")
        assert "0 of 1 cron listeners" in said["remedy"]
        wait_healthy(server)    # without the scope it is of this process alone
        assert metric(server, "listeners_present", "cron", "host") == 0
    wait_until(lambda: of_host(server)[0] == 200, DEADLINE, lambda: of_host(server))
    wait_until(lambda: metric(server, "listeners_silent_seconds", "cron", "host") < 3 * BEAT, DEADLINE,
               "it is silent for ever")


def test_the_evented_process_does_not_wait(watched, bus, postgres, pgbouncer):
    """While the pooled path hangs, whoever asks for the cluster waits, and nobody else."""
    server = watched()
    bus(server)
    # not only healthy, which it also is before the first client has made it listen
    wait_until(lambda: health(server)[1]["state"] == "listening", DEADLINE, lambda: health(server))
    pgbouncer.command("PAUSE postgres")
    try:
        answers, began = [], time.monotonic()
        asking = threading.Thread(target=lambda: answers.append(scrape(server.metrics)))
        asking.start()
        took = []
        while asking.is_alive() or not took:
            before = time.monotonic()
            requests.get(server.evented_url + ROUTE, timeout=DEADLINE)
            took.append(time.monotonic() - before)
            asking.join(0.1)
        assert time.monotonic() - began < SCRAPE
        assert len(took) > 5, "nobody had to wait: nothing was seen"
        assert statistics.median(took) < QUICK and max(took) < 5 * QUICK, took
        said, = answers
        assert said["connected", "bus"] == 1
        assert ("listeners_present", "bus", "host") not in said
        assert of_host(server)[1]["cause"] == "unverified"
    finally:
        pgbouncer.command("RESUME postgres")
    wait_until(lambda: of_host(server)[0] == 200, DEADLINE, lambda: of_host(server))


def test_postgresql_is_asked_seldom(watched, bus, postgres):
    """Once in ten seconds, by whoever asks for metrics or health, on a connection that the pooler keeps."""
    server = watched()
    bus(server)
    wait_healthy(server)
    seen = []
    over = time.monotonic() + 25
    while time.monotonic() < over:
        seen.append((scrape(server.metrics)["listeners_silent_seconds", "bus", "host"], of_host(server)[0]))
    values = {silent for silent, _ in seen}
    assert len(seen) > 10 * len(values)
    assert 2 <= len(values) <= 4, f"{len(seen)} were asked, and PostgreSQL {len(values)} times"


def test_the_queue_that_a_session_holds_up(watched, bus, postgres):
    server = watched()
    bus(server)
    holder = postgres.connect()
    holder.autocommit = False
    try:
        cr = holder.cursor()
        cr.execute("LISTEN held_up")
        holder.commit()
        cr.execute("SELECT 1")      # what comes is not delivered in a transaction
        postgres.query("SELECT count(pg_notify('held_up', repeat('x', 7000) || n)) FROM generate_series(1, 2000) AS n")
        wait_until(lambda: metric(server, "notify_queue_usage_ratio", None) > 0.001, DEADLINE, "it is never seen")
    finally:
        holder.close()
    wait_until(lambda: metric(server, "notify_queue_usage_ratio", None) < 0.001, DEADLINE, "it stays full")


def test_a_role_that_may_not_see_the_others(watched, bus, postgres):
    """What it can see is told all the same, and what it cannot is said once."""
    postgres.query("CREATE ROLE hidden_listener LOGIN PASSWORD 'hidden'")
    try:
        server = watched(imdispatcher_db_user="hidden_listener", imdispatcher_db_password="hidden")
        bus(server)
        wait_listening(postgres, server, "bus")
        wait_until(lambda: metric(server, "listeners_present", "bus", "host") == 1, DEADLINE, "it is not counted")
        assert metric(server, "listeners_silent_seconds", "bus", "host") is None
        server.wait_log("WARNING .*Odoo's role may not see the state of other roles' listeners")
        postgres.query("GRANT pg_read_all_stats TO odoo")
        wait_until(lambda: metric(server, "listeners_silent_seconds", "bus", "host") is not None, DEADLINE,
                   "it is granted, and seen by nobody")
        assert server.log_text().count("may not see the state") == 1
        server.kill()
    finally:
        postgres.query("REVOKE pg_read_all_stats FROM odoo")
        postgres.query("DROP ROLE hidden_listener")
