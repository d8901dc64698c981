"""The alert rules and the dashboard of docs/monitoring name metrics that there are; each alert says what to do."""
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from stack.download.cache import Cache, Missing, cache_folder
from stack.download.programs import prometheus
from stack.machine import Unavailable
from stack.servers.prometheus import config
from tests.documents import one_line

REPO = Path(__file__).parent.parent.parent
ALERTS = REPO / "docs/monitoring/alerts.yml"
DASHBOARD = REPO / "docs/monitoring/grafana.json"
PAGE = (REPO / "docs/monitoring.rst").read_text()
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
PANELS = json.loads(DASHBOARD.read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_all_metrics_are_served_and_documented():
    code = (REPO / "bus_alt_connection/observe/metrics.py").read_text()
    used = {name for text in [*QUERIES, *(rule["expr"] for rule in RULES)]
            for name in re.findall(r"bus_alt_connection_(\w+)", text)}
    documented = set(re.findall(r"^``bus_alt_connection_(\w+)``", PAGE, re.M))
    assert used <= documented
    assert {name for name in documented if f'"{name}"' not in code} == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule):
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"].endswith(".")
    assert len(rule["annotations"]["description"].split()) > 15
    lines = one_line((REPO / "docs/log-lines.rst").read_text())
    description = one_line(rule["annotations"]["description"]).replace("{{ $labels.listener }}", "bus")
    for quoted in re.findall(r'"(.*?)"', description):
        assert quoted in lines, f"no line of the log: {quoted}"


def test_the_panels_do_not_overlap():
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in PANELS})


@pytest.fixture
def promtool():
    try:
        program = prometheus(Cache(cache_folder(), makes=False))[0][0].with_name("promtool")
    except (Missing, Unavailable):
        program = shutil.which("promtool")
    if not program:
        pytest.skip("no promtool on this machine: ./dev test fetches it, Debian's package prometheus has it")

    def run(*args):
        done = subprocess.run([program, *map(str, args)], cwd=REPO, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        assert not done.returncode, done.stdout
    return run


def test_a_fault_fires_its_alert(promtool):
    promtool("check", "rules", "--lint-fatal", ALERTS)
    promtool("test", "rules", REPO / "tests/fast/alerts.yml")


def test_prometheus_reads_the_queries(promtool, tmp_path):
    rules = [{"record": f"panel_{number}", "expr": query.replace("$__rate_interval", "1m")}
             for number, query in enumerate(QUERIES)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", path)


def test_the_configuration_is_what_the_page_shows():
    read = yaml.safe_load(config(1234))
    assert read["rule_files"] == [str(ALERTS)]
    assert read["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:1234"]}]


def test_prometheus_reads_the_configuration(promtool, tmp_path):
    path = tmp_path / "prometheus.yml"
    path.write_text(config(1234))
    promtool("check", "config", path)
