"""What the bench reckons with, without a server: the CPU of what has ended, and the table of aims."""
import os
import subprocess
import sys

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
    assert [line.strip(" *-") for line in lines][-6:-1] == [
        "commit to client, p50", "this addon", "Odoo straight to PostgreSQL", "0.40", "at most 0.55"]
    assert not aims(figures, "latency", [Aim("commit to client", "p50", "addon", "direct", "at most", 0.55)])
