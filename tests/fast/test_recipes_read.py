"""What the README and docs/ say fits what is shipped: links, snippets, tables and log lines are read, nothing is run.

Contract: of the addon `Settings` is asked, and its sources for what they log. That the addon logs no other line on the
real stack is asserted when a server of the tests ends (tests/conftest.py).
"""
import ast
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from bench import architecture, front_page
from bus_alt_connection.settings import Settings
from stack.addon import FOLDER
from stack.series import Series
from tests import documents
from tests.documents import REPO, block, ini, one_line, rows

README, *DOCS = documents.PAGES
FRONT = README.read_text()


# -- the pages ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", documents.ALL, ids=documents.name_of)
def test_a_page_is_valid_and_leads_somewhere(path):
    assert not documents.read(path)[1]
    assert not {target for page, target in documents.links() if page == path and not (page.parent / target).exists()}
    text = path.read_text()
    for name in re.findall(r"\b(?:tests|docs|bus_alt_connection|stack|bench)/[\w/]+\.\w+", text):
        # the pages that a ./dev command writes are links, and checked as such
        assert (REPO / name).exists() or re.search(rf"`[^`]*<{re.escape(name)}>`__", text), name
    known = set(re.findall(r"^  \./dev ([a-z-]+)", (REPO / "dev").read_text(), re.M))
    assert set(re.findall(r"\./dev ([a-z-]+)", text)) <= known


def test_every_page_is_in_the_index():
    linked = {target for page, target in documents.links() if page.name == "index.rst"}
    assert {path.name for path in DOCS} - {"index.rst"} <= linked


def test_the_readme_is_a_front_page():
    assert len(FRONT.splitlines()) <= 180
    # what it is, whose idea it is, who needs it, what it does, what it costs, how to install it, where it was proven
    order = [".. image::", "github.com/OCA/server-tools", "Do I need it?", front_page.BEGIN, "What it needs and costs",
             "Install, check, remove", "Where it was proven", "See it work"]
    assert sorted(map(FRONT.index, order)) == [FRONT.index(words) for words in order]


def test_the_readme_shows_what_was_measured():
    """The table and the picture are those that `python3 -m bench.front_page` and `bench.architecture` make."""
    shown = FRONT[FRONT.index(front_page.BEGIN) + len(front_page.BEGIN):FRONT.index(front_page.END)].strip()
    assert shown == front_page.table(REPO / "docs")
    assert architecture.FILE.read_text() == architecture.picture()


SNIPPETS = {f"{path.stem}:{name or number}": (language, text)
            for number, (path, name, language, text) in enumerate(documents.blocks())}


@pytest.mark.parametrize("language, text", SNIPPETS.values(), ids=SNIPPETS)
def test_a_snippet_parses(language, text):
    if language == "ini" or "[options]" in text:
        assert ini(text if "[" in text else "[postgresql]\n" + text)
    elif language == "yaml" or re.match(r"(- )?\w+:\n", text):
        assert all(yaml.safe_load_all(text))
    elif language == "toml":
        assert tomllib.loads(text)
    elif language in ("sh", "console"):
        # of a console what is typed: a line with $, and those that a backslash joins to it
        typed = text if language == "sh" else "\n".join(re.findall(r"^\$ ((?:.*\\\n)*.*)", text, re.M))
        done = subprocess.run(["sh", "-n"], input=typed, text=True, capture_output=True)
        assert typed and not done.returncode, done.stderr


SHIPPED = ("odoo.conf", "bus_alt_connection/readme/CONFIGURE.rst", "bus_alt_connection/static/description/index.html")
LOADING = {name: text for name, text in [*((name, text) for name, (_, text) in SNIPPETS.items()),
                                         *((name, (REPO / name).read_text()) for name in SHIPPED)]
           if re.search(r"(?i)server_wide_modules ?[:=]|SERVER_WIDE_MODULES, value|--load=", text)}


@pytest.mark.parametrize("name", LOADING)
def test_no_module_that_odoo_loads_by_itself_is_left_out(name):
    """What Odoo 19 loads by itself is in the value, and the value for older versions stands beside it."""
    comments, lines = [], []
    for line in LOADING[name].splitlines():
        (comments if re.match(r"\s*[;#]", line) else lines).append(line)
    loaded = {value for line in lines for value in re.findall(
        r'(?i)(?:server_wide_modules(?: ?=|:|, value:) ?"?|--load=)([\w,]+)', line)}
    if name.endswith("published-odoo-conf"):
        # OCA's own README left them out; the page says so
        assert loaded == {"web,bus_alt_connection"}
        return
    assert loaded
    for modules in loaded:
        assert modules.startswith(f"{Series(19).server_wide},bus_alt_connection")
        older = modules.replace(Series(19).server_wide, Series(18).server_wide)
        assert [line for line in comments if re.search(rf"before Odoo 19: .*\b{older}$", line)], comments


# -- the settings ------------------------------------------------------------------------------------------------------

def test_no_other_setting_is_named():
    known = {row[0] for name in ("settings-table", "timing-table") for row in rows(name)}
    for path in documents.PAGES:
        for name in re.findall(r"\b(?:ODOO_)?IMDISPATCHER_\w+|\bimdispatcher_\w+", path.read_text()):
            name = re.sub("^odoo_", "", name.lower())
            if path.name == "settings.rst" and name in documents.GONE:
                continue
            assert name in known or any(one.startswith(name) for one in known) and name.endswith("_"), (path, name)


@pytest.mark.parametrize("option, meaning", [(row[0], row[-1]) for row in rows("timing-table")])
def test_the_limits_of_a_timing(option, meaning):
    least, most = re.search(r"From ([\d.]+) to ([\d.]+)\.$", meaning).groups()
    for value in (least, most):
        assert not Settings({}, {option: value}).problems
    for value in (float(least) * 0.99, float(most) * 1.01):
        assert Settings({}, {option: value}).problems


@pytest.mark.parametrize("name", ["settings-environment", "published-environment"])
def test_the_environment_is_known(name):
    lines = "\n".join(line for line in block(name).splitlines() if line.startswith("export"))
    done = subprocess.run(["sh", "-c", lines + "\nenv"], env={}, text=True, capture_output=True, check=True)
    variables = [line.partition("=")[0] for line in done.stdout.splitlines() if "IMDISPATCHER" in line]
    assert {re.sub("^odoo_", "", one.lower()) for one in variables} == {"imdispatcher_db_host", "imdispatcher_db_port"}


# -- the log lines -----------------------------------------------------------------------------------------------------

LEVELS = {"info": "INFO", "warning": "WARNING", "error": "ERROR", "exception": "ERROR", "log": None}
SOURCES = {path: ast.parse(path.read_text()) for path in sorted(FOLDER.rglob("*.py"))}
STATE = r"The\ .+\ listener\ .+"      # said in parts; which parts there are is seen on the real stack


def template(node):
    """A text in the code as a regular expression, anything where a value goes; None for what is no text."""
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) or ".+" for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        shape = re.escape(one_line(node.value)).replace("\\%", "%").replace("\\.", ".")
        return re.sub(r"(%[.\d]*[sdgfr])+", ".+", shape)
    return None


def nodes():
    return (node for tree in SOURCES.values() for node in ast.walk(tree))


def logged():
    """{what a log line looks like: its level, None if it is not said in place} of each call of a logger."""
    calls = [node for node in nodes() if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
             and node.func.attr in LEVELS and ast.unparse(node.func.value).endswith("logger")]
    found = {template(call.args[call.func.attr == "log"]): LEVELS[call.func.attr] for call in calls}
    return {shape: level for shape, level in found.items() if shape}


def plain(shape):
    return shape.replace("\\", "").replace(".+", "@")


def test_the_table_has_every_log_line():
    found = logged()
    assert len(found) > 10
    missing = [shape for shape, level in found.items() if shape != STATE and not any(
        re.fullmatch(shape, plain(line), re.S) and (level is None or level in levels)
        for line, levels in documents.log_lines())]
    assert not missing


def test_the_code_has_every_line_of_the_table():
    shapes = {*logged(), *(shape for shape in map(template, nodes())
                           if shape and len(re.findall(r"[A-Za-z]{3,}", plain(shape))) > 3)} - {STATE}
    lines = [plain(line) for line, _ in documents.log_lines()]
    missing = [line for line in lines if not any(re.fullmatch(shape, line, re.S) for shape in shapes)]
    assert not [line for line in missing if not re.match(r"The \S+ listener ", line)]


@pytest.mark.parametrize("line", list(documents.quoted_lines()))
def test_a_quoted_line_is_in_the_table(line):
    assert [shape for shape, _ in documents.log_lines() if re.fullmatch(shape, line)]
    if line.startswith("Wrong setting"):
        variable, value = re.search(r"variable (\w+) is '(.*?)'", line).groups()
        assert [line] == [f"Wrong setting: {problem}" for problem in Settings({variable: value}).problems]


def test_all_of_the_table_of_faults_is_read():
    lines = list(documents.quoted_lines())
    for words, count in (("cannot connect", 9), ("does not receive", 4), ("lost its connection", 3)):
        assert len([line for line in lines if words in line]) >= count
    for begin in ("Ignored", "Cannot send", "All queued", "Wrong setting"):
        assert [line for line in lines if line.startswith(begin)]


# -- what the recipes have in common with what is shipped --------------------------------------------------------------

PGBOUNCER = ini((REPO / "pgbouncer.ini").read_text())


POOLERS = ["pgbouncer.ini", *(name for name, (_, text) in SNIPPETS.items() if "pgbouncer" in text)]


@pytest.mark.parametrize("name", POOLERS)
def test_no_pooler_can_be_stopped_by_a_stranger(name):
    """CVE-2026-107349: a PgBouncer that ignores startup parameters, and not `options`."""
    text = SNIPPETS[name][1] if name in SNIPPETS else (REPO / name).read_text()
    for line in re.findall(r"(?m)^\s*ignore_startup_parameters\b.*", text):
        assert "options" in line


def test_debian_pgbouncer_is_the_one_that_is_run():
    """The page's pgbouncer.ini pools as the shipped one does, which the tests run with."""
    own, ours = ini(block("debian-pgbouncer-ini")), PGBOUNCER
    assert set(own["databases"]) == set(ours["databases"])
    more = {name: value for name, value in own["pgbouncer"].items() if ours["pgbouncer"].get(name) != value}
    # the package's own paths, and what the doctor asks
    assert set(more) == {"logfile", "pidfile", "unix_socket_dir", "stats_users"}
    assert set(ours["pgbouncer"]) <= set(own["pgbouncer"])
    # so do those of failover.rst, whose Patroni and HAProxy are run as they are shown
    failover = ini(block("failover-pgbouncer-ini"))
    assert failover["databases"] == {"*": "host=haproxy.example port=5000"}
    assert failover["pgbouncer"].items() <= ours["pgbouncer"].items()


def test_the_compose_override_is_the_deployment_that_is_shipped():
    from compose_spec import PyOptions
    override = block("compose-override")
    PyOptions(apply_merge=True).from_yaml(override).validate()
    services = yaml.safe_load(override)["services"]
    whole = yaml.safe_load((REPO / "docker-compose.yml").read_text())["services"]
    for name, part in (("pgbouncer", "image"), ("pgbouncer", "entrypoint"), ("odoo", "image")):
        assert services[name][part] == whole[name][part]
    # the master password is the deployment's own
    assert services["odoo"]["entrypoint"] == [
        re.sub(r".*ADMIN_PASSWD.*\n", "", part) for part in whole["odoo"]["entrypoint"]]
    assert services["odoo"]["environment"]["PGHOST"] == "pgbouncer"
    assert set(services["odoo"]["volumes"]) <= set(whole["odoo"]["volumes"])


def test_kubernetes_says_what_the_other_pages_say():
    manifests = {each["kind"]: each for name in ("kubernetes-odoo", "kubernetes-postgres")
                 for each in yaml.safe_load_all(block(name))}
    deployment = manifests["Deployment"]["spec"]["template"]["spec"]
    container, = deployment["containers"]
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert {name for name in env if "IMDISPATCHER" in name} <= {row[0].upper() for row in rows("settings-table")}
    assert env["ODOO_HTTP_INTERFACE"] == "0.0.0.0" and "args" not in container
    # the file is in a volume that is mounted
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volume = mounts[os.path.dirname(env["IMDISPATCHER_DB_PASSWORD_FILE"])]
    secret, = (one["secret"]["secretName"] for one in deployment["volumes"] if one["name"] == volume)
    cluster, pooler = manifests["Cluster"], manifests["Pooler"]
    roles = {role["name"]: role for role in cluster["spec"]["managed"]["roles"]}
    assert roles[env["IMDISPATCHER_DB_USER"]]["passwordSecret"]["name"] == secret
    assert roles[env["PGUSER"]]["createdb"] and not roles[env["IMDISPATCHER_DB_USER"]].get("createdb")
    assert env["PGHOST"] == pooler["metadata"]["name"]
    assert env["IMDISPATCHER_DB_HOST"] == cluster["metadata"]["name"] + "-rw"
    assert pooler["spec"]["cluster"]["name"] == cluster["metadata"]["name"]
    assert pooler["spec"]["pgbouncer"]["poolMode"] == PGBOUNCER["pgbouncer"]["pool_mode"]
    for name, value in pooler["spec"]["pgbouncer"]["parameters"].items():
        assert PGBOUNCER["pgbouncer"][name] == value, name
    # the health routes
    readiness = yaml.safe_load(block("kubernetes-readiness"))["readinessProbe"]["httpGet"]
    assert readiness == {"path": "/bus_alt_connection/health", "port": "live"}
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[kind]["httpGet"] == {"path": "/web/health", "port": "http"}


def test_the_health_route_is_the_one_that_is_named():
    for name in ("README.rst", "docs/kubernetes.rst", "docs/several-machines.rst", "docs/monitoring.rst"):
        found = set(re.findall(r"/bus_alt_connection/health\w*", (REPO / name).read_text()))
        assert found == {"/bus_alt_connection/health"}      # test_health.py asks a server for it


def test_what_the_page_of_the_versions_names_is_there():
    """The parts of the addon that handle what differs, as ``module`` or ``folder.module``."""
    named = {name for row in documents.table("differences-table") for name in documents.literals(row[2])}
    assert len(named) > 5
    parts = {".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in SOURCES}
    assert named <= parts, named - parts


def test_the_design_says_where_to_begin():
    """The page has the states and leads to the addon's first lines, which name every part."""
    text = (REPO / "docs/design.rst").read_text()
    assert all(name in text for name in ("CONNECTING", "VERIFYING", "LISTENING", "STOPPED"))
    assert f"``{FOLDER.name}/__init__.py``" in text
    parts = {path.relative_to(FOLDER).parts[0].removesuffix(".py") for path in SOURCES} - {"__init__", "__manifest__"}
    manual = ast.get_docstring(SOURCES[FOLDER / "__init__.py"])
    # the command is in the manual by its own name, and the shared data explain themselves
    assert not {name for name in parts - {"cli", "errors"} if not re.search(rf"\b{name}\b", manual)}


def test_the_page_of_the_manifest_says_what_the_readme_says():
    """The summary, what of the series was run, and the picture."""
    manifest = ast.literal_eval((FOLDER / "__manifest__.py").read_text())
    run = re.search(r"\*\*Odoo\*\*: (.*?) by the test suite, on every change; (.*?) by part of it, once",
                    one_line(FRONT)).groups()
    html = one_line((FOLDER / "static/description/index.html").read_text())
    assert manifest["summary"] in html
    for text in (html, one_line((FOLDER / "readme/DESCRIPTION.rst").read_text())):
        assert f"run on Odoo {run[0]} by its test suite and on {run[1]} by part of it, once" in text
    pictures = re.findall(r'src="(.*?)"', html)
    assert pictures and all((FOLDER / "static/description" / name).exists() for name in pictures)
    # and so do the classifiers, and the page about the series
    classified = re.findall(r'"Framework :: Odoo :: (\d+)\.0"', (REPO / "setup.py").read_text())
    assert sorted(classified) == sorted(re.findall(r"\d+", " ".join(run)))
    series = documents.table("series-table")
    assert classified == [row[0].astext() for row in series if row[2].astext().startswith("run by")]


def test_pip_knows_the_published_addon_by_another_name():
    from stack.download.python import PUBLISHED
    done = subprocess.run([sys.executable, "setup.py", "--name"], cwd=REPO, text=True, capture_output=True)
    ours = done.stdout.split()[-1]
    page = (REPO / "docs/upgrading.rst").read_text()
    assert ours != PUBLISHED and f"``{PUBLISHED}``" in page and f"``{ours}``" in page
