"""The README and the pages of docs/, as docutils reads them: their code blocks by name, their tables, their links.

What is tested is taken from here, so that what is documented is what is tested. A block's name is its `:name:`.
"""
import configparser
import functools
import io
import re
from pathlib import Path

from docutils import nodes
from docutils.core import publish_doctree

from stack import recipes

REPO = Path(__file__).parent.parent
block = recipes.block
PAGES = [REPO / "README.rst", *sorted((REPO / "docs").glob("*.rst"))]
GONE = {"imdispatcher_wakeups_per_second"}      # settings: their page says what to write instead
ALL = [*PAGES, *(REPO / name for name in ("CONTRIBUTING.rst", "SECURITY.rst", "CHANGELOG.rst"))]


@functools.cache
def read(path):
    """(the document, what docutils has to say of it)"""
    complaints = io.StringIO()
    settings = {"report_level": 2, "halt_level": 5, "warning_stream": complaints, "file_insertion_enabled": False}
    return publish_doctree(path.read_text(), source_path=path.name, settings_overrides=settings), complaints.getvalue()


def name_of(path):
    return str(path.relative_to(REPO))


def blocks():
    """Every literal block: (page, name or "", language or "", text)."""
    for path in PAGES:
        for node in read(path)[0].findall(nodes.literal_block):
            language = next((kind for kind in node["classes"] if kind != "code"), "")
            yield path, (node["names"] or [""])[0], language, node.astext()


def table(name):
    """The rows of a table of the pages without its header: lists of the cells' nodes."""
    found, = (node for path in PAGES for node in read(path)[0].findall(nodes.table) if name in node["names"])
    body, = found.findall(nodes.tbody)
    return [list(row.children) for row in body.findall(nodes.row)]


def rows(name):
    """The rows of a table of settings: [(option, variable, default, …)]"""
    found = []
    for option, variable, *cells in table(name):
        (option,), (variable,) = literals(option), literals(variable)
        assert variable == option.upper()
        found.append((option, *(one_line(cell.astext()) for cell in cells)))
    return found


def literals(node):
    """The texts in ``double backquotes``, each on one line."""
    return [one_line(found.astext()) for found in node.findall(nodes.literal)]


def one_line(text):
    return " ".join(text.split())


def quoted_lines():
    """Whole log lines in the pages: in the table of faults, and in blocks."""
    for row in table("faults-table"):
        for line in literals(row[1]):
            if line.startswith(("The bus listener", "Ignored", "Cannot send", "All queued", "Wrong setting")):
                yield line
    for _, _, _, text in blocks():
        for line in text.splitlines():
            if line.startswith("The ") and " listener" in line:
                yield one_line(line)


@functools.cache
def log_lines():
    """[(a regular expression, its levels)] of the table of all lines that the addon logs."""
    return [("".join(".+" if part == "…" else re.escape(part) for part in re.split("(…)", literals(line)[0])),
             set(level.astext().split(", "))) for line, level, _ in table("log-lines-table")]


def undescribed(log):
    """The lines of the addon's in a log of Odoo's that this table does not have."""
    lines = re.findall(r"^\S+ \S+ \d+ ([A-Z]+) \S+ odoo\.addons\.bus_alt_connection\S*: (.*)$", log, re.M)
    return [f"{level} {line}" for level, line in lines if level != "DEBUG" and not any(
        level in levels and re.fullmatch(shape, one_line(line).replace("The cron listener", "The bus listener"))
        for shape, levels in log_lines())]


def links():
    """(page, target) of every link to a file of this repository, and of every picture."""
    for path in ALL:
        for node in read(path)[0].findall(lambda node: isinstance(node, (nodes.reference, nodes.image))):
            target = node.get("refuri") or node.get("uri") or "#"
            if not re.match(r"[a-z]+:|#", target):
                yield path, target.partition("#")[0]


def ini(text):
    """The sections of an ini file, as dicts: {section: {name: value}}."""
    parser = configparser.RawConfigParser(delimiters=("=",), comment_prefixes=(";", "#"), strict=True)
    parser.optionxform = str
    parser.read_string(text)
    return {section: dict(parser[section]) for section in parser.sections()}


def options(name, **addresses):
    """What the odoo.conf of this name says to the addon. `addresses`: values to put in the place of these options'."""
    said = ini(block(name))["options"]
    chosen = {key: value for key, value in said.items() if key.startswith("imdispatcher_")}
    unknown = set(addresses) - set(chosen)
    assert not unknown, f"{name} does not set {unknown}"
    return {"server_wide_modules": said["server_wide_modules"], **chosen, **addresses}
