"""A real Prometheus reads what a real Odoo serves: each query of the dashboard has data, and a fault fires its alert.

Takes 2 min.
"""
import json

import pytest
import requests

from stack.download import programs
from stack.machine import Unavailable
from stack.process import DEADLINE, free_port, wait_until
from stack.servers.prometheus import DASHBOARD, Prometheus


@pytest.fixture
def prometheus(stack, tmp_path):
    """`prometheus(port)` starts one that scrapes there."""
    try:
        command, _ = programs.prometheus(stack.machine.cache)
    except Unavailable as exc:
        pytest.skip(f"NOT TESTED with Prometheus: {exc}")
    started = []

    def start(port):
        started.append(Prometheus(command, tmp_path / "prometheus", port).start())
        return started[-1]
    yield start
    for program in started:
        program.end_by_force()


def query(prometheus, text):
    try:
        answer = requests.get(f"{prometheus.url}/api/v1/query", {"query": text}, timeout=DEADLINE)
    except requests.ConnectionError:
        return []
    return answer.json()["data"]["result"] if answer.ok else []


def firing(prometheus):
    return {row["metric"]["alertname"] for row in query(prometheus, 'ALERTS{alertstate="firing"}')}


@pytest.mark.timeout(480)
@pytest.mark.needs("cron_listeners")
def test_the_dashboard_has_data_and_a_fault_fires_its_alert(odoo, bus, postgres, prometheus):
    port = free_port()
    server = odoo(workers=1, options={"imdispatcher_metrics_port": port})
    client, sender = bus(server)
    sender.send_sql("first")
    assert client.next()
    seen = prometheus(port)
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        text = panel["targets"][0]["expr"].replace("$__rate_interval", "1m")
        wait_until(lambda text=text: query(seen, text), DEADLINE, f"no data: {panel['title']}, {text}")
    assert not firing(seen)
    postgres.stop()
    try:
        # not longer: a prefork Odoo may end by itself when PostgreSQL is away for two minutes
        wait_until(lambda: "OdooBusDegraded" in firing(seen), 100, lambda: f"no alert but {firing(seen)}")
    finally:
        postgres.start()
    wait_until(lambda: not firing(seen), DEADLINE, lambda: f"still {firing(seen)}")
    assert query(seen, "up == 1"), "it was ended by the fault, and not by the recovery"
