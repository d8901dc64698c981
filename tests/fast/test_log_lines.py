"""The pages say what the addon logs, and of its settings what it takes: each line of the log is in a table, and back.

Only modules of the addon that need no Odoo are asked, and its sources for what they log.
"""
import ast
import logging
import re

import pytest

from bus_alt_connection import errors, state
from bus_alt_connection.settings import Settings
from stack.addon import FOLDER
from tests import documents
from tests.documents import REPO, literals, one_line, rows

# -- the log lines -----------------------------------------------------------------------------------------------------

LEVELS = {"info": "INFO", "warning": "WARNING", "error": "ERROR", "exception": "ERROR", "log": None, "debug": None}
SOURCES = {path: ast.parse(path.read_text()) for path in sorted(FOLDER.rglob("*.py"))}


def template(node):
    """A text in the code as a regular expression, anything where a value goes; None for what is no text."""
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or ".+" for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        shape = re.escape(one_line(node.value)).replace("\\%", "%").replace("\\.", ".")
        return re.sub(r"(%[.\d]*[sdgfr])+", ".+", shape)
    return None


def logged():
    """{what a log line looks like: its level, None if it is not said in place} of each call of a logger."""
    found = {}
    for tree in SOURCES.values():
        for node in ast.walk(tree):
            if (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS
                    and ast.unparse(node.func.value).endswith("logger") and node.func.attr != "debug"):
                text = node.args[1 if node.func.attr == "log" else 0]
                found[template(text)] = LEVELS[node.func.attr]
    return found


def texts():
    """What the other texts of the code look like: a line may be made of several of them."""
    for tree in SOURCES.values():
        for node in ast.walk(tree):
            shape = template(node)
            if shape and len(re.findall(r"[A-Za-z]{3,}", shape.replace(".+", ""))) > 3:
                yield shape


def described():
    """(line, its levels) of the table of all lines."""
    for line, level, _ in documents.table("log-lines-table"):
        line, = literals(line)
        yield line.replace("…", "@"), set(level.astext().split(", "))


# What the code says in parts: these lines are made by the addon, below.
IN_PARTS = r"The\ .+\ listener\ .+"


def test_the_table_has_every_log_line():
    lines = dict(described())
    found = logged()
    assert found.pop(IN_PARTS, "") is None and len(found) > 10
    missing = {shape: level for shape, level in found.items() if shape and not [
        line for line, levels in lines.items() if re.fullmatch(shape, line, re.S) and level in {None, *levels}]}
    assert not missing


def test_the_code_has_every_line_of_the_table():
    shapes = {*filter(None, logged()), *texts()} - {IN_PARTS}
    made = [line for line, _ in lines_of_a_listener()]
    for line, _ in described():
        as_shape = re.escape(line).replace("@", ".+")
        assert ([shape for shape in shapes if re.fullmatch(shape, line, re.S)]
                or [one for one in made if re.fullmatch(as_shape, one)]), f"nothing in the code says: {line}"


ENDPOINT = "pg.example:5432/postgres as odoo (backend pid 2114)"
NEXT = "Trying the next endpoint."      # the remedy where there is one


def said(problem=None, phase=state.CONNECTING, poll_seconds=5.0, name="bus", before=()):
    """(line, level) of what the addon logs when a listener enters a phase: through its real logger."""
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append((one_line(record.getMessage()), record.levelname))
    handler = Handler(logging.INFO)
    logger = logging.getLogger(state.__name__)
    level, log = logger.level, state.StateLog(name, poll_seconds)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        now = state.initial()
        for each in (*before, (phase, {"problem": problem})):
            then, now = now, state.successor(now, each[0], **each[1])
            log.change(then, now)
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
    return lines[-1]


CONNECTED = [(state.VERIFYING, {"endpoint": ENDPOINT})]


def lines_of_a_listener():
    """(line, level) of each kind of change that a listener's state can make."""
    yield said(phase=state.LISTENING, before=CONNECTED)
    lost = errors.ConnectionLost("a reason", ENDPOINT)
    yield said(phase=state.LISTENING, before=[*CONNECTED, (state.CONNECTING, {"problem": lost}), *CONNECTED])
    for _, cause in (*errors.CAUSES, ((), errors.UNKNOWN)):
        yield said(errors.ConnectionLost("a reason", ENDPOINT, cause))
        yield said(errors.ConnectionLost("a reason", ENDPOINT, cause), before=CONNECTED)
        yield said(errors.ConnectionLost("a reason", cause=cause), state.VERIFYING, before=CONNECTED)
    yield said(errors.ConnectionLost("wrong setting: it is wrong"))
    for cause in (errors.OTHER_SERVER, errors.OTHER_DATABASE, errors.POOLER, errors.UNDELIVERED, errors.REFUSED):
        yield said(errors.ConnectionLost("a reason", ENDPOINT, cause), before=CONNECTED)
        another = cause._replace(level=logging.WARNING, remedy=NEXT)
        yield said(errors.ConnectionLost("a reason", ENDPOINT, another), before=CONNECTED)


@pytest.mark.parametrize("line, level", sorted(set(lines_of_a_listener())))
def test_the_table_has_each_line_of_a_listener(line, level):
    found = [levels for text, levels in described() if re.fullmatch(re.escape(text).replace("@", ".+"), line)]
    assert [levels for levels in found if level in levels], f"{level} {line}: {found}"


def test_the_next_endpoint_is_said_so():
    assert re.escape(NEXT).replace("\\.", ".") in texts()


def problems(line):
    """What may have made a line about a connection: ConnectionLost, and what the listener was connected to before."""
    found = re.fullmatch(r"The \w+ listener (lost its connection to|cannot connect to|cannot connect:) "
                         r"(?:(\S+ as \w+(?: \([^)]*\))?): )?(.*)", line)
    before = CONNECTED if found[1].startswith("lost") else []
    parts = found[3].split(". ")
    for end in range(1, len(parts)):
        yield errors.ConnectionLost(". ".join(parts[:end]), found[2]), before


def diagnoses(line):
    """What may have made a line about a connection on which nothing arrives."""
    endpoint = re.search(r"[\w.]+:\d+/\w+ as \w+", line)[0]
    seen = re.search(r'database "(\w+)" .* go to "(\w+)"', line)
    databases = seen.groups() if seen else ("one", "one")
    hint = re.search(r" \(PostgreSQL reports its address as [^)]*\)|$", line)[0]
    for servers, pooler in (((1, 2), False), ((1, 1), False), ((1, 1), True)):
        problem = errors.undelivered(endpoint, (servers[0], databases[0]), (servers[1], databases[1]), pooler)
        problem.reason += hint
        yield problem, CONNECTED
        yield errors.ConnectionLost(problem.reason, cause=problem.cause._replace(remedy=NEXT)), CONNECTED


@pytest.mark.parametrize("line", list(documents.quoted_lines()))
def test_a_quoted_line_is_what_the_addon_prints(line):
    if re.match(r"The \w+ listener (lost|cannot|does not)", line):
        name = line.split()[1]
        makers = diagnoses if "does not receive" in line else problems
        assert line in [said(problem, before=before, name=name)[0] for problem, before in makers(line)]
    elif line.startswith("Wrong setting"):
        variable, value = re.search(r"variable (\w+) is '(.*?)'", line).groups()
        assert [line] == [f"Wrong setting: {problem}" for problem in Settings({variable: value}).problems]
    shapes = {re.escape(text).replace("@", ".+") for text, _ in described()}
    assert [shape for shape in shapes if re.fullmatch(shape, line)], "the table of all lines has no such line"


def test_all_of_the_table_of_faults_is_read():
    lines = list(documents.quoted_lines())
    assert len([line for line in lines if "cannot connect" in line]) >= 9
    assert len([line for line in lines if "does not receive" in line]) == 4
    assert len([line for line in lines if "lost its connection" in line]) == 3
    for begin in ("Ignored", "Cannot send", "All queued", "Wrong setting"):
        assert [line for line in lines if line.startswith(begin)]


# -- the settings, and the causes of the health route ----------------------------------------------------------------

@pytest.mark.parametrize("option, meaning", [(row[0], row[-1]) for row in rows("timing-table")])
def test_the_limits_of_a_timing(option, meaning):
    least, most = re.search(r"From ([\d.]+) to ([\d.]+)\.$", meaning).groups()
    for value in (least, most):
        assert not Settings({}, {option: value}).problems
    for value in (float(least) * 0.99, float(most) * 1.01):
        assert Settings({}, {option: value}).problems


def test_the_causes_of_the_health_route_are_all_on_its_page():
    text = one_line((REPO / "docs/monitoring.rst").read_text())
    said, = re.findall(r"``cause`` is one of (.*?)\. ", text)
    causes = [cause.name for _, cause in errors.CAUSES] + [errors.UNKNOWN.name, *state.UNVERIFIED, "unverified"]
    assert sorted(re.findall(r"``(.*?)``", said.replace("``db_host``", ""))) == sorted(causes)
