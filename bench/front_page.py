"""The README's table: what a user notices each way to run Odoo, from the figures that lie in docs/ as CSV.

Contract: `python3 -m bench.front_page` writes the table between its two marks in the README. It needs nothing but
Python, measures nothing and rounds to what a reader can use. A figure that was not measured is an error.
"""
import csv
import itertools
import sys
import textwrap
from pathlib import Path

BEGIN, END = ".. figures: begin", ".. figures: end"
README = Path(__file__).parent.parent / "README.rst"

SETUPS = {"direct": "Odoo without a pooler", "pooled": "PgBouncer alone", "published": "PgBouncer, OCA's addon",
          "addon": "PgBouncer, this addon"}
# (what a user notices, the file, (its first columns), the column of the figure, its unit)
ROWS = (
    ("Live messages arrive", None, None, None, None),
    ("Next message after PostgreSQL ended the listening connection", "bad-day.csv", "listening backend terminated",
     "back after (s)", "s"),
    ("Next message after that connection became silent", "bad-day.csv",
     "listening connection silent, TCP alive, new connections pass", "back after (s)", "s"),
    ("Next message after a planned Patroni switchover", "failover.csv", "planned switchover",
     "first message again (s)", "s"),
    ("Next message after the primary was killed (Patroni)", "failover.csv", "primary killed (kill -9, Patroni too)",
     "first message again (s)", "s"),
    ("From commit to browser, median", "performance.csv", ("sending", "p50", "commit to client"), "median", "ms"),
    ("Messages sent a second, one in each request", "performance.csv",
     ("sending", "one for each call", "messages a second"), "median", ""),
    ("Messages sent a second, 20 in each request", "performance.csv",
     ("sending", "20 for each call", "messages a second"), "median", ""),
    ("Server connections with 32 busy workers", "performance.csv", ("connections", "32 workers", "under load"),
     "median", ""),
)
# where nothing ever arrives there is no time after which it does
NEVER = "never"


def rounded(text, unit):
    """A figure for people: whole from ten on, else with one digit after the point."""
    if text.startswith(">"):
        return f"not in {text[1:]} {unit}"
    value = float(text)
    return f"{value:.0f} {unit}".strip() if value >= 9.95 or value == int(value) else f"{value:.1f} {unit}".strip()


def read(folder):
    """{(file, key, setup): {column: text}} of all figures in the folder."""
    found = {}
    for name in ("bad-day.csv", "failover.csv", "performance.csv"):
        with open(folder / name, newline="") as file:
            for row in csv.DictReader(file):
                key = row.get("fault") or (row["measure"], row["case"], row["metric"])
                found[name, key, row["setup"]] = row
    return found


def cells(folder):
    """The rows of the table, its header first."""
    figures = read(folder)
    deaf = {setup for (name, key, setup), row in figures.items()
            if name == "performance.csv" and key[0] == "sending" and key[2] == "lost" and float(row["median"])}
    yield ["What is noticed", *SETUPS.values()]
    for title, name, key, column, unit in ROWS:
        if name is None:
            yield [title, *("no" if setup in deaf else "yes" for setup in SETUPS)]
        else:
            yield [title, *(NEVER if setup in deaf and unit else rounded(figures[name, key, setup][column], unit)
                            for setup in SETUPS)]


def table(folder):
    """The table as reStructuredText that is read as easily in the source: headings wrap, a row is one line."""
    head, *rows = cells(folder)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths = [max(width, *map(len, title.split())) for title, width in zip(head, widths, strict=True)]
    wrapped = itertools.zip_longest(*map(textwrap.wrap, head, widths), fillvalue="")
    rule = tuple("=" * width for width in widths)
    lines = [rule, *wrapped, rule, *rows, rule]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main():
    before, found, rest = README.read_text().partition(BEGIN)
    if not found:
        sys.exit(f"{README} has no line {BEGIN}")
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}\n\n{table(README.parent / 'docs')}\n\n{END}{after}")


if __name__ == "__main__":
    main()
