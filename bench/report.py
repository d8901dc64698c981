"""The documents: every figure as CSV, tables and plots for people. Made by the command, never by hand.

Contract: results of the same measure, case, setup and metric are repetitions: shown is the median, with the least and
the most; "×" is the ratio to Odoo straight to PostgreSQL, in the same run. The page shows what a part names in SHOWN
and PLOTS; the file has all.
"""
import csv
import datetime
import io
import os
import platform
import re
import statistics
import subprocess
from collections import namedtuple
from pathlib import Path

from .setups import SETUPS

Result = namedtuple("Result", "measure case setup metric unit value")
# what the ratio of one setup's figure `to` another's should be: `bound` is "at most" or "at least"
Aim = namedtuple("Aim", "metric case setup to bound value")

# one colour for a setup in all plots: greys and blues for what there is, the warm ones for this addon
COLOURS = dict(zip(SETUPS, ["#777777", "#000000", "#88ccee", "#4477aa", "#cc3311", "#882255", "#ee9955"],
                   strict=True))
PLAIN = {"lost", "duplicated"}      # totals of all repetitions, no medians


class Figures:
    """All results of a run."""

    def __init__(self, results, made=""):
        """`made`: the day and the command."""
        self.values, self.units = {}, {}
        self.made = {result.measure: made for result in results}
        for result in results:
            key = result.measure, result.metric, result.setup, result.case
            self.values.setdefault(key, []).append(result.value)
            self.units[key[:2]] = result.unit

    def keep(self, path, but):
        """Take over what an earlier run wrote, but for the measures of this one.

        Of its repetitions the file has the number, the least, the median and the most: these stand for them. Returns
        whether there was anything.
        """
        if not path.exists():
            return False
        before = Figures([])
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                if row["measure"] not in but:
                    count, ends = int(row["repetitions"]), [plain(row["least"]), plain(row["most"])]
                    values = [plain(row["median"])]
                    if count > 1 and row["metric"] not in PLAIN:
                        values = [ends[0], *values * (count - 2), ends[1]]
                    before.values[row["measure"], row["metric"], row["setup"], row["case"]] = values
                    before.units[row["measure"], row["metric"]] = row["unit"]
                    self.made[row["measure"]] = row["made"]
        self.values, self.units = {**before.values, **self.values}, {**before.units, **self.units}
        return bool(before.values)

    def metrics(self, measure):
        return [metric for name, metric in self.units if name == measure]

    def some(self, measure, metric, index):
        """The setups (2) or the cases (3) of a metric, in order of appearance."""
        return list(dict.fromkeys(key[index] for key in self.values if key[:2] == (measure, metric)))

    def median(self, measure, metric, setup, case):
        """A number, a text where it is none, or None."""
        values = self.values.get((measure, metric, setup, case))
        if not values or isinstance(values[0], str):
            return values[0] if values else None
        return sum(values) if metric in PLAIN else statistics.median(values)

    def ratio(self, measure, metric, setup, case, to="direct"):
        """To another setup's median of the same case."""
        base = self.median(measure, metric, to, case)
        own = self.median(measure, metric, setup, case)
        known = metric not in PLAIN and setup != to and base and isinstance(own, (int, float))
        return own / base if known else None

    def rows(self):
        """Of the CSV file."""
        for (measure, metric, setup, case), values in self.values.items():
            key = measure, metric, setup, case
            numbers = [value for value in values if not isinstance(value, str)]
            yield [measure, case, setup, metric, self.units[key[:2]], number(self.median(*key)), len(values),
                   number(min(numbers, default=None)), number(max(numbers, default=None)),
                   number(self.ratio(*key)), self.made[measure]]

    def cell(self, measure, metric, setup, case):
        key = measure, metric, setup, case
        value = self.median(*key)
        if value is None:
            return "–"
        text, values = number(value), self.values[key]
        if len(values) > 1 and metric not in PLAIN and not isinstance(value, str):
            text += f" ({number(min(values))}–{number(max(values))})"
        ratio = self.ratio(*key)
        return text if ratio is None else f"{text}, ×{times(ratio)}"


def number(value):
    """Three significant digits, whole numbers whole."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.4f}"


def times(ratio):
    """With two decimals, and no more digits than the file keeps of it."""
    return f"{ratio:.2f}" if ratio < 10 else number(ratio)


def plain(text):
    """What `number` wrote: a number again, or a text."""
    try:
        return float(text) if "." in text or "e" in text else int(text)
    except ValueError:
        return text


def title(setup):
    return SETUPS[setup].title if setup in SETUPS else setup


def machine(versions):
    """One paragraph: what this was measured on, and with what."""
    info = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.M)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    parts = [f"{os.cpu_count()} cores" + (f" ({model[1].strip()})" if model else ""), f"{pages:.0f} GiB of memory",
             f"{platform.system()} {platform.release().split('-')[0]}"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, text=True,
                            capture_output=True).stdout.strip()
    return (f"Measured on {datetime.date.today()}{f', commit {commit}' if commit else ''}: {', '.join(parts)}; "
            + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")


def csv_table(head, rows):
    """A table with a line for each row."""
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([head, *rows])
    return [".. csv-table::", "   :header-rows: 1", "", *(f"   {line}" for line in text.getvalue().splitlines()), ""]


def table_or_none(label, names, rows):
    """A table of what happened to each, by name; one sentence where it never did."""
    if all(cell in (0, "0", "–") or str(cell).startswith("0 of ") for row in rows for cell in row[1:]):
        return [f"{label[0].upper()}{label[1:]}: none, in any fault, by anyone.", ""]
    return csv_table([label, *names], rows)


def table(figures, measure, metric):
    """Setups down, cases across; the other way round where there are many cases."""
    setups, cases = figures.some(measure, metric, 2), figures.some(measure, metric, 3)
    unit = figures.units[measure, metric]
    label = f"{metric} ({unit})" if unit else metric
    if len(cases) <= 6:
        return csv_table([label, *cases],
                          [[title(setup), *(figures.cell(measure, metric, setup, case) for case in cases)]
                           for setup in setups])
    return csv_table([label, *map(title, setups)],
                      [[case, *(figures.cell(measure, metric, setup, case) for setup in setups)] for case in cases])


def totals(figures, measure, metric):
    """One line: who lost how many."""
    found = {}
    for (name, what, setup, _), values in figures.values.items():
        if (name, what) == (measure, metric) and sum(values):
            found[setup] = found.get(setup, 0) + sum(values)
    return f"{metric.capitalize()}: " + (", ".join(f"{title(setup)} {count}" for setup, count in found.items())
                                         or "none by anyone") + "."


def aims(figures, measure, wanted):
    """The ratios that a measure is to reach, and what they are."""
    rows = []
    for aim in wanted:
        ratio = figures.ratio(measure, aim.metric, aim.setup, aim.case, aim.to)
        if ratio is not None:
            rows.append([f"{aim.metric}, {aim.case}", title(aim.setup), title(aim.to), times(ratio),
                         f"{aim.bound} {aim.value:g}"])
    return csv_table(["ratio", "of", "to", "measured", "aim"], rows) if rows else []


def heading(text, line):
    return [text, line * len(text), ""]


def write_csv(path, head, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def write(folder, figures, parts, versions, only=None):
    """performance.csv, and performance.rst with its plots: their paths.

    :param parts: {measure: module}
    :param only: the measures that were made; the others stay as they are in the folder
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "performance.csv"]
    kept = figures.keep(paths[0], but=only) if only else False
    write_csv(paths[0], ["measure", "case", "setup", "metric", "unit", "median", "repetitions", "least", "most",
                         "ratio to direct", "made"], figures.rows())
    lines = [*heading("Performance", "="),
             "What does the addon cost, beside other ways to run Odoo, and how does that grow?", "",
             "Made by ``./dev bench``; this page shows some of the figures, ``performance.csv`` has all. Each part "
             "below names the day and the command of its figures."
             + (" The next line is that of the latest command." if kept else ""), "",
             machine(versions), "",
             "A cell is the median, in parentheses the least and the most of the repetitions, then the ratio to Odoo "
             "straight to PostgreSQL (×). The setups took turns. Absolute figures are this machine's; the ratios are "
             "what carries over.", ""]
    for measure, module in parts.items():
        if not figures.metrics(measure):
            continue
        day, _, by = figures.made[measure].partition(" ")
        lines += [*heading(module.TITLE, "-"), f"Measured on {day} by ``{by}``.", "", module.NOTE, ""]
        for metric in figures.metrics(measure):
            if metric in PLAIN:
                lines += [totals(figures, measure, metric), ""]
                continue
            if metric in module.SHOWN:
                lines += table(figures, measure, metric)
            if metric in module.PLOTS:
                name = "performance-" + re.sub(r"\W+", "-", f"{measure}-{metric}").strip("-") + ".svg"
                plot(folder / name, figures, measure, metric, module.TITLE)
                paths.append(folder / name)
                lines += [f".. image:: {name}", f"   :alt: {module.TITLE}: {metric}", ""]
        lines += aims(figures, measure, getattr(module, "AIMS", ()))
    paths.append(folder / "performance.rst")
    paths[-1].write_text("\n".join(lines).rstrip() + "\n")
    return paths


def plot(path, figures, measure, metric, heading):
    """Bars, side by side for each case."""
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9})
    from matplotlib import pyplot
    setups, cases = figures.some(measure, metric, 2), figures.some(measure, metric, 3)
    fig, axes = pyplot.subplots(figsize=(7.5, 3.6))
    width = 0.8 / len(setups)
    for index, setup in enumerate(setups):
        values = [figures.median(measure, metric, setup, case) for case in cases]
        drawn = [(place, value) for place, value in enumerate(values) if isinstance(value, (int, float))]
        axes.bar([place + (index - (len(setups) - 1) / 2) * width for place, _ in drawn],
                 [value for _, value in drawn], width, label=title(setup), color=COLOURS[setup])
    axes.set_xticks(range(len(cases)), [case.replace(", ", ",\n") for case in cases])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    unit = figures.units[measure, metric]
    axes.set_ylabel(f"{metric} ({unit})" if unit else metric)
    axes.set_title(heading)
    axes.grid(axis="y", alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    fig.tight_layout()
    fig.savefig(path, metadata={"Date": None})
    pyplot.close(fig)
