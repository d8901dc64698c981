"""The bench runs: every setup took part, nothing was lost, the documents are written. Bounds are loose: no figures."""

import pytest

from bench import bad_day, listeners, report, setups
from bench.__main__ import PARTS, bench, losses


@pytest.fixture(autouse=True)
def websockets(facts):
    if facts.client != "WebSocket":
        pytest.skip(f"the bench's clients are websockets, which {facts} has not")


@pytest.mark.timeout(1800)
def test_bench_quick(stack, tmp_path):
    figures, paths = bench(stack, list(PARTS), True, tmp_path / "docs")
    assert not losses(figures)
    assert all(path.stat().st_size for path in paths)
    assert {path.name for path in paths} >= {"performance.csv", "performance.rst", "performance-latency-p50.svg"}
    assert set(figures.some("latency", "lost", 2)) == set(setups.RECEIVING)
    assert set(figures.some("sending", "lost", 2)) == set(setups.SETUPS)
    for name in set(setups.SETUPS) - setups.DEAF:
        assert figures.median("sending", "commit to client", name, "p50") < 1000
        assert figures.median("sending", "messages a second", name, "20 for each call") > 0
        assert name == "addon off" or figures.median("latency", "p50", name, "1 client, idle") < 1000
    # who does not receive NOTIFYs shows that the others' hearing is no accident
    assert figures.median("latency", "lost", "pooled", "1 client, idle")
    assert figures.median("sending", "lost", "pooled", "one at a time")
    # a login for each message, which a neighbour makes no cheaper
    for name in ("published", "addon off"):
        assert figures.ratio("sending", "CPU for a message", "addon", "the pooler", to=name) < 0.8
    for measure in PARTS:
        assert figures.metrics(measure), f"no figures of {measure}"
    few, many = (figures.median("connections", "idle", "addon", case) for case in ("1 worker", "4 workers"))
    assert many <= few + 4, "the workers share the pool"
    for name in ("addon", "addon direct"):
        assert figures.median("connections", "kept for NOTIFYs", name, "4 workers") >= 4, "each worker keeps one"
    # a database that nobody is connected to is not read; jobs are looked for once, and once more by Odoo's own clock
    cases = figures.some("databases", "statements on the bus", 3)
    assert len(cases) == 3
    for case in cases:
        assert not figures.median("databases", "statements on the bus where nobody is connected", "addon", case)
        assert figures.median("databases", "times that jobs were looked for, most of any database", "addon", case) <= 2
    assert figures.median("databases", "statements on the bus", "addon", cases[-1]) > 0
    assert figures.median("databases", "caught up after", "addon", cases[1]) < 60
    # a restart under all listeners: none hammers
    attempts, back = (figures.median("listeners", metric, "addon", "10 listeners") for metric in
                      ("attempts of each until then, at PostgreSQL", "99 % back"))
    assert attempts < 4 * (listeners.AWAY + back)


def test_every_hop_is_scram(stack):
    """What a login costs is measured where it costs what it does at a user's."""
    assert stack.postgres.query("SELECT DISTINCT auth_method FROM pg_hba_file_rules") == [("scram-sha-256",)]
    assert stack.postgres.query("SELECT rolname FROM pg_authid WHERE rolcanlogin"
                                " AND rolpassword NOT LIKE 'SCRAM-SHA-256$%'") == []
    for pooler in (stack.pgbouncer, setups.session_pooler(stack)):
        assert {row["key"]: row["value"] for row in pooler.show("CONFIG")}["auth_type"] == "scram-sha-256"


def test_one_measure_anew(tmp_path):
    """The others stay in the documents as they were."""
    def result(measure, value, metric="some"):
        return report.Result(measure, "a case", "addon", metric, "s", value)
    before = report.Figures([*(result("latency", value) for value in (0.5, 1.25, 4, 8)), result("latency", 2, "lost"),
                             result("startup", "any"), result("connections", 1)], "2026-11-21 ./dev bench")
    report.write(tmp_path, before, {}, {})
    after = report.Figures([result("connections", 7)], "2026-11-22 ./dev bench --only connections")
    report.write(tmp_path, after, PARTS, {}, only=["connections"])
    for measure, metric in [("latency", "some"), ("latency", "lost"), ("startup", "some")]:
        assert after.cell(measure, metric, "addon", "a case") == before.cell(measure, metric, "addon", "a case") != "–"
    assert after.median("connections", "some", "addon", "a case") == 7
    text = (tmp_path / "performance.rst").read_text()
    assert text.count("Measured on 2026-11-21 by ``./dev bench``.") == 2
    assert text.count("Measured on 2026-11-22 by ``./dev bench --only connections``.") == 1


@pytest.mark.timeout(600)
def test_bad_day(stack, tmp_path):
    faults, names = [bad_day.terminated, bad_day.malformed, bad_day.pooler_between], ["published", "addon"]
    outcomes = list(bad_day.bad_day(stack, watch=8, faults=faults, names=names))
    for outcome in outcomes:
        if outcome.setup == "addon":
            assert outcome.back < 2 and not outcome.lost and not outcome.duplicated
            assert outcome.caller in ("", "an answer")
        else:
            assert outcome.back is None, "the published addon is dark for 50 s"
            assert outcome.caller in ("", "an error") and (outcome.caller == "" or outcome.lost == 1)
    for path in bad_day.write(tmp_path, outcomes, setups.versions(stack), watch=8):
        assert ">8" in path.read_text()
    assert report.number(0.1234) == "0.123"
