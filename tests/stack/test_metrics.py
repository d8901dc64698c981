"""The metrics say what happened, as Prometheus reads them."""
import socket
import time

import psutil
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from stack.clients.listeners import wait_listening
from stack.process import DEADLINE, free_port, wait_until


def scrape(port):
    """{(name without prefix, listener or None[, scope]): value}; nothing while nobody serves it"""
    try:
        answer = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE)
    except requests.ConnectionError:
        return {}
    answer.raise_for_status()
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            prefix, name = sample.name[:19], sample.name[19:]
            assert prefix == "bus_alt_connection_"
            scope = [sample.labels["scope"]] if "scope" in sample.labels else []
            found[(name, sample.labels.get("listener"), *scope)] = sample.value
    return found


def wait_metric(port, name, value, listener="bus", timeout=DEADLINE):
    wait_until(lambda: scrape(port).get((name, listener)) == value, timeout,
               lambda: f"{name} is not {value}: {scrape(port)}")


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_what_they_say(odoo, bus, postgres, workers):
    port = free_port()
    server = odoo(workers=workers, options={"imdispatcher_metrics_port": port},
                  env={"IMDISPATCHER_HEARTBEAT_SECONDS": "0.2"})
    if workers:
        server.wait_log("Metrics are served")
    # there is none before the first browser
    assert ("connected", "bus") not in scrape(port)

    client, sender = bus(server)
    wait_metric(port, "connected", 1)
    before = scrape(port)
    assert before["reconnects_total", "bus"] == 0
    assert before["degraded_seconds_total", "bus"] < DEADLINE

    for number in range(3):
        sender.send_orm(number)
        assert client.next().payload == number
    after = scrape(port)
    assert after["notifications_received_total", "bus"] - before["notifications_received_total", "bus"] == 3
    assert abs(after["last_notification_timestamp_seconds", "bus"] - time.time()) < DEADLINE
    wait_until(lambda: 0 < scrape(port).get(("heartbeat_round_trip_seconds", "bus"), 0) < DEADLINE, DEADLINE,
               "no heartbeat is told")

    postgres.query("NOTIFY imbus, 'no JSON'")
    wait_metric(port, "malformed_total", 1)

    pid, = wait_listening(postgres, server, "bus")
    sender.insert("nobody is notified of it")
    postgres.query("SELECT pg_terminate_backend(%s)", [pid])
    wait_metric(port, "reconnects_total", 1)
    wait_metric(port, "connected", 1)
    wait_until(lambda: scrape(port)["wakeups_total", "bus"] > before["wakeups_total", "bus"], DEADLINE,
               "nobody was woken")
    dark = scrape(port)["degraded_seconds_total", "bus"] - after["degraded_seconds_total", "bus"]
    assert 0 < dark < DEADLINE
    # nothing is counted while all is well
    assert scrape(port)["degraded_seconds_total", "bus"] == scrape(port)["degraded_seconds_total", "bus"]


def test_degraded_while_postgresql_is_away(odoo, bus, postgres):
    port = free_port()
    bus(odoo(options={"imdispatcher_metrics_port": port}))
    wait_metric(port, "connected", 1)
    postgres.stop()
    try:
        wait_metric(port, "connected", 0)
        first = scrape(port)["degraded_seconds_total", "bus"]
        wait_until(lambda: scrape(port)["degraded_seconds_total", "bus"] > first, DEADLINE,
                   "the time does not grow")
    finally:
        postgres.start()
    wait_metric(port, "connected", 1)


def test_what_waits_to_be_sent(odoo, bus, pgbouncer):
    port = free_port()
    server = odoo(options={"imdispatcher_metrics_port": port}, env={"IMDISPATCHER_CONNECT_TIMEOUT_SECONDS": "1"})
    client, sender = bus(server)
    wait_metric(port, "connected", 1)
    sender.send_orm("leaves")
    assert client.next().payload == "leaves"
    before = scrape(port)
    assert before["notifications_sent_total", None] >= 1
    assert before["notifications_waiting", None] == before["notifications_dropped_total", None] == 0
    pgbouncer.command("PAUSE postgres")     # where NOTIFYs go, and nothing else of Odoo's
    try:
        sender.send_orm("waits")
        assert scrape(port)["notifications_waiting", None] >= 1
    finally:
        pgbouncer.command("RESUME postgres")
    wait_metric(port, "notifications_waiting", 0, None)
    assert client.next().payload == "waits"
    after = scrape(port)
    assert after["notifications_sent_total", None] > before["notifications_sent_total", None]
    assert after["notifier_reconnects_total", None] > before["notifier_reconnects_total", None]
    assert after["notifications_dropped_total", None] == 0


def test_nothing_is_said_of_what_is_not_kept(odoo, bus):
    port = free_port()
    bus(odoo(options={"imdispatcher_metrics_port": port, "imdispatcher_keep_notify": False}))
    wait_metric(port, "connected", 1)
    assert ("notifications_waiting", None) not in scrape(port)


def test_on_loopback_by_itself(odoo, bus):
    port = free_port()
    server = odoo(options={"imdispatcher_metrics_port": port})
    bus(server)
    server.wait_log("Metrics are served")
    listening = {one.laddr for one in psutil.net_connections("tcp") if one.status == "LISTEN"}
    assert [address for address, number in listening if number == port] == ["127.0.0.1"]


def test_off_without_a_port(odoo, bus):
    server = odoo()
    bus(server)
    server.wait_log("The bus listener is listening on")
    assert "metrics" not in server.log_text().lower()


@pytest.mark.parametrize("workers", [0, 2], ids=["threaded", "prefork"])
def test_a_port_that_is_taken_costs_a_line(odoo, bus, workers):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = odoo(workers=workers, options={"imdispatcher_metrics_port": taken.getsockname()[1]})
        works_without_metrics(server, bus)


def test_a_library_that_is_missing_costs_a_line(odoo, bus, tmp_path):
    (tmp_path / "prometheus_client.py").write_text("raise ImportError\n")
    own = odoo.stack.machine.odoo.env["PYTHONPATH"]
    server = odoo(options={"imdispatcher_metrics_port": free_port()}, env={"PYTHONPATH": f"{tmp_path}:{own}"})
    works_without_metrics(server, bus)


def works_without_metrics(server, bus):
    client, sender = bus(server)
    sender.send_orm("all the same")
    assert client.next().payload == "all the same"
    complaints = [line for line in server.log_text().splitlines() if "metrics" in line.lower() and " ERROR " in line]
    assert len(complaints) == 1, complaints
    assert "imdispatcher_metrics_port" in complaints[0]
    assert "Traceback" not in server.log_text()
