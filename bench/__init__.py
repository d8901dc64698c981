"""Measures of Odoo's live bus: every way to run it behind a pooler, side by side, on one machine, in one run.

`./dev bench` asks what it costs and how it grows, `./dev bad-day` what a fault does. One file per kind of measurement:
each has `TITLE`, `NOTE` (what the reader has to know), `PLOTS`, and `run(lab, quick)` which yields `Result`s. `setups`
starts who takes part, `report` writes the documents.
"""
import sys
from pathlib import Path

# the fault kit and the flow of notifications are shared with the tests
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
