"""./dev bench: every way to run the bus behind a pooler, side by side; see the package's first lines.

Contract: exits 0 when every measurement was made and the documents are written, 1 when a setup that has to deliver lost
something, 2 when the stack could not be set up. `--quick` is a check of the bench (two minutes), no measurement.
"""
import argparse
import concurrent.futures
import datetime
import sys
import time
from pathlib import Path

from stack import Stack, say
from stack.command import exit_status

from . import audience, connections, databases, foreign, latency, listeners, report, sending, startup
from .setups import DATABASE, DEAF, SETUPS, Lab, versions

PARTS = {"sending": sending, "latency": latency, "foreign": foreign, "audience": audience, "connections": connections,
         "listeners": listeners, "databases": databases, "startup": startup}
# take turns on servers that all run; the others start their own, one at a time
LAB = {sending, latency}
# a quick run, which measures nothing, makes these meanwhile: they end nobody else's connections
MEANWHILE = {listeners, startup, databases}


def main(args=None):
    parser = argparse.ArgumentParser(prog="./dev bench", description="Measure the bus, side by side.")
    parser.add_argument("--quick", action="store_true", help="a run of two minutes, to see that it works")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="the folder of the documents (docs)")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS),
                        help="make these measurements anew, keep the others")
    options = parser.parse_args(args)
    return exit_status("bench", lambda: run(options))


def run(options):
    with Stack(groups=("odoo",)) as stack:
        stack.database(DATABASE)
        figures, paths = bench(stack, options.only, options.quick, options.output)
    say("written: " + ", ".join(map(str, paths)))
    bad = losses(figures)
    for line in bad:
        print(f"./dev bench: {line}", file=sys.stderr)
    return 1 if bad else 0


def bench(stack, only, quick, folder):
    """Measure and write: (Figures, paths of the documents)."""
    results, began = [], time.monotonic()
    bare = Lab(stack, [])       # nobody runs in it: the measurements that take it start their own
    parts = {name: module for name, module in PARTS.items() if name in only}
    shared = [module for module in parts.values() if module in LAB]

    def measure(modules, lab):
        for module in modules:
            say(f"{module.TITLE} ({time.monotonic() - began:.0f} s so far)")
            results.extend(list(module.run(lab, quick)))
    meanwhile = [module for module in parts.values() if quick and module in MEANWHILE]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        measured = pool.submit(measure, meanwhile, bare)
        if shared:
            with Lab(stack, SETUPS, sending.WORKERS) as lab:
                measure(shared, lab)
        measured.result()
    measure([module for module in parts.values() if module not in {*shared, *meanwhile}], bare)
    partly = [] if len(parts) == len(PARTS) else list(parts)
    command = " ".join(["./dev bench", *["--quick"] * quick, *["--only"] * bool(partly), *partly])
    figures = report.Figures(results, f"{datetime.date.today()} {command}")
    paths = report.write(folder, figures, PARTS, versions(stack), partly)
    say(f"measured in {time.monotonic() - began:.0f} s")
    return figures, paths


def losses(figures):
    """What was lost or came twice where it should not, one line each."""
    return [f"{report.title(setup)}, {case}: {sum(values)} {metric}"
            for (_, metric, setup, case), values in figures.values.items()
            if metric in report.PLAIN and setup not in DEAF and any(values)]


if __name__ == "__main__":
    sys.exit(main())
