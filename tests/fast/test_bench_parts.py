"""What the bench reckons with, without a server: the CPU of what has ended, and the table of aims."""
import os
import subprocess
import sys

from bench import matrix
from bench.report import Aim, Figures, Result, aims
from bench.setups import cpu_of_all

BURN = "import time\nwhile time.process_time() < 0.3: pass"


def test_the_cpu_of_a_process_that_has_ended_counts():
    before = cpu_of_all(os.getpid())
    subprocess.run([sys.executable, "-c", BURN], check=True)
    assert 0.25 < cpu_of_all(os.getpid()) - before < 5


def test_aims():
    figures = Figures([Result("sending", "p50", setup, "commit to client", "ms", value)
                       for setup, value in (("direct", 10), ("addon", 5), ("addon", 3), ("addon", 4))])
    lines = aims(figures, "sending", [Aim("commit to client", "p50", "addon", "direct", "at most", 0.55),
                                      Aim("commit to client", "p99", "addon", "direct", "at most", 1)])
    assert [line.strip() for line in lines if "p50" in line or "p99" in line] == [
        '"commit to client, p50","this addon","Odoo straight to PostgreSQL","0.40","at most 0.55"']
    assert not aims(figures, "latency", [Aim("commit to client", "p50", "addon", "direct", "at most", 0.55)])


def test_a_cell_that_is_run_again_takes_its_own_place(tmp_path):
    def cell(pooler, server, made, failed=None):
        return matrix.Cell(pooler, server, "2026-01-01", "0.1", ["1.2.3", "15.1"], {"notification": made}, failed or {})

    newest = cell(*matrix.NEWEST, "9 ms")
    matrix.write(tmp_path, [newest, cell("odyssey", 15, "7 ms")], "19.0")
    matrix.write(tmp_path, [again := cell("odyssey", 15, "8 ms", {"lost": "lost: [{1}]"})], "19.0")
    assert list(matrix.read(tmp_path / "reach.csv")) == [again, newest]
    page = (tmp_path / "reach.rst").read_text()
    assert "Odyssey 1.2.3, PostgreSQL 15.1" in page and "7 ms" not in page
    assert "**no**, see 1 below" in page and "1. Odyssey 1.2.3, PostgreSQL 15.1, lost: ``lost: [{1}]``" in page
