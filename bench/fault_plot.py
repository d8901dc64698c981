"""./dev fault-plot: how long each notification took, through a fault, on every setup at the same moment.

Contract: the setups, their paths and their flows are those of ./dev bad-day. Their listening backends are terminated
once, at second 0; what is sent from BEFORE seconds earlier to WATCH seconds later becomes a point. Exits 0 when the
plot is written, 2 when the stack could not be set up.
"""
import argparse
import sys
import time
from pathlib import Path

from stack import Stack, say
from stack.command import exit_status
from stack.process import wait_until

from . import report
from .bad_day import NAMES, Side, terminated
from .setups import DATABASE

FILE = Path("bus_alt_connection/static/description/fault.png")     # of the README and of the manifest's page
BEFORE, WATCH = 10, 70      # seconds
# colour, and size of a point: where setups do the same, the one shows around the other
POINTS = {"direct": ("#93c5fd", 10), "session": ("#d97706", 6), "published": ("#7e22ce", 2.5), "addon": ("#15803d", 3)}


def measure(stack, before, watch):
    """{setup: [(seconds after the fault when it was committed, seconds it took, or None)]}"""
    sides = [Side(stack, name) for name in NAMES]
    try:
        for side in sides:
            side.open()
        say(f"the listening backends are terminated in {before} s, then {watch} s are watched")
        time.sleep(before)      # both spans are what the plot shows
        event = terminated(stack, sides)
        time.sleep(watch)
        for side in sides:
            side.flow.stop()
        over = time.monotonic()
        # those sent last may be under way where the bus works
        wait_until(lambda: time.monotonic() > over + 1, 10, "time stands still")
        return {side.name: points(side.flow, event, before) for side in sides}
    finally:
        for side in sides:
            side.path.close()
            if side.flow:
                side.flow.__exit__()
            if side.odoo:
                side.odoo.kill()


def points(flow, event, before):
    came = {entry.id: entry.at for entry in flow.received()}
    return [(at - event, number in came and came[number] - at or None)
            for number, at in sorted(flow.committed.items()) if at > event - before]


def plot(path, found):
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "bench", "font.size": 9})
    from matplotlib import pyplot
    fig, axes = pyplot.subplots(figsize=(7.5, 3.6))
    for name, each in found.items():
        arrived = [(at, took) for at, took in each if took is not None]
        lost = [at for at, took in each if took is None]
        label = report.title(name) + (f" ({len(lost)} had not arrived by then)" if lost else "")
        colour, size = POINTS[name]
        axes.plot(*zip(*arrived, strict=True), "o", markersize=size, markeredgewidth=0, color=colour, label=label)
        axes.plot(lost, [200] * len(lost), "x", markersize=size, color=colour)
    axes.axvline(0, color="#b91c1c", linewidth=1)
    axes.annotate("listening backend terminated", (0, 0.0006), (4, 0), textcoords="offset points", color="#b91c1c",
                  fontsize=8)
    axes.set_yscale("log")
    axes.set_ylim(0.0005, 300)
    axes.set_yticks([0.001, 0.01, 0.1, 1, 10, 100], ["1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"])
    axes.minorticks_off()
    axes.set_xlabel("sent at (seconds after the fault)")
    axes.set_ylabel("from commit to client")
    axes.grid(axis="y", alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, 1.22), ncols=2)
    fig.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=130)
    pyplot.close(fig)


def main(args=None):
    parser = argparse.ArgumentParser(prog="./dev fault-plot", description="Plot latency through a fault.")
    parser.add_argument("--output", type=Path, default=FILE, help=f"the file ({FILE})")
    parser.add_argument("--watch", type=int, default=WATCH, help=f"seconds to watch after the fault ({WATCH})")
    options = parser.parse_args(args)
    return exit_status("fault-plot", lambda: run(options))


def run(options):
    with Stack(groups=("odoo", "figures")) as stack:
        stack.database(DATABASE)
        found = measure(stack, BEFORE, options.watch)
    plot(options.output, found)
    for name, each in found.items():
        took = [took for at, took in each if took is not None and at > 0]
        say(f"  {report.title(name)}: {sum(1 for _, took in each if took is None)} of {len(each)} had not arrived, "
            f"longest {max(took, default=0):.2f} s")
    say(f"written: {options.output} ({options.output.stat().st_size / 1024:.0f} KB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
