"""What the README and docs/ say fits what is shipped: links, snippets and tables are read, nothing is run.

The log lines and what is said of settings are in test_log_lines.py.
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
from stack.addon import FOLDER
from stack.series import Series
from tests import documents
from tests.documents import REPO, block, ini, one_line, rows

# -- the pages ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", documents.ALL, ids=documents.name_of)
def test_a_page_is_valid(path):
    _, complaints = documents.read(path)
    assert not complaints


@pytest.mark.parametrize("path", documents.ALL, ids=documents.name_of)
def test_links_lead_somewhere(path):
    missing = {target for page, target in documents.links() if page == path and not (page.parent / target).exists()}
    assert not missing


@pytest.mark.parametrize("path", documents.ALL, ids=documents.name_of)
def test_paths_and_commands_that_are_named_exist(path):
    text = path.read_text()
    for name in re.findall(r"\b(?:tests|docs|bus_alt_connection|stack|bench)/[\w/]+\.\w+", text):
        # the pages that a ./dev command writes are links, and checked as such
        assert (REPO / name).exists() or re.search(rf"`[^`]*<{re.escape(name)}>`__", text), name
    commands = set(re.findall(r"\./dev ([a-z-]+)", text))
    known = set(re.findall(r"^  \./dev ([a-z-]+)", (REPO / "dev").read_text(), re.M))
    assert commands <= known


def test_the_readme_shows_what_was_measured():
    """The table that `python3 -m bench.front_page` makes of the figures in docs/, and no other."""
    text = documents.PAGES[0].read_text()
    shown = text[text.index(front_page.BEGIN) + len(front_page.BEGIN):text.index(front_page.END)].strip()
    assert shown == front_page.table(REPO / "docs")


def test_the_picture_is_what_its_command_makes():
    assert architecture.FILE.read_text() == architecture.picture()


def test_every_page_is_in_the_index():
    linked = {target for page, target in documents.links() if page.name == "index.rst"}
    assert {path.name for path in documents.PAGES[1:]} - {"index.rst"} <= linked


def test_the_readme_is_a_front_page():
    text = documents.PAGES[0].read_text()
    assert len(text.splitlines()) <= 180
    # what it is, whose idea it is, who needs it, what it does: a picture and the tables come first
    order = [".. image::", "github.com/OCA/server-tools", "Do I need it?", front_page.BEGIN, "Install", "proven"]
    assert sorted(map(text.index, order)) == [text.index(words) for words in order]


SNIPPETS = [(f"{path.stem}:{name or number}", language, text)
            for number, (path, name, language, text) in enumerate(documents.blocks())]


@pytest.mark.parametrize("language, text", [snippet[1:] for snippet in SNIPPETS], ids=[s[0] for s in SNIPPETS])
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


# -- the settings ------------------------------------------------------------------------------------------------------

GONE = {"imdispatcher_wakeups_per_second"}      # the page about the settings says what to write instead


def test_no_other_setting_is_named():
    known = {row[0] for name in ("settings-table", "timing-table") for row in rows(name)}
    for path in documents.PAGES:
        for name in re.findall(r"\b(?:ODOO_)?IMDISPATCHER_\w+|\bimdispatcher_\w+", path.read_text()):
            name = re.sub("^odoo_", "", name.lower())
            if path.name == "settings.rst" and name in GONE:
                continue
            assert name in known or any(one.startswith(name) for one in known) and name.endswith("_"), (path, name)


SHIPPED = ("odoo.conf", "bus_alt_connection/readme/CONFIGURE.rst", "bus_alt_connection/static/description/index.html")
LOADING = {**{name or f"{path.stem}:{number}": text for number, (path, name, _, text) in enumerate(documents.blocks())
              if re.search("bus_alt_connection", text) and re.search("(?i)server_wide_modules[:=]|server_wide_modules ="
                                                                     "|--load=", text)},
           **{name: (REPO / name).read_text() for name in SHIPPED}}


@pytest.mark.parametrize("name", LOADING)
def test_no_module_that_odoo_loads_by_itself_is_left_out(name):
    """What Odoo 19 loads by itself is in the value, and the value for older ones stands beside it."""
    lines = LOADING[name].splitlines()
    comments = [line.strip() for line in lines if re.match(r"\s*[;#]", line)]
    loaded = {value for line in lines if line.strip() not in comments
              for value in re.findall(r'(?i)(?:server_wide_modules(?: ?=|:|, value:) ?"?|--load=)([\w,]+)', line)}
    if name == "published-odoo-conf":
        # the published addon's own README left them out; the page says so
        assert loaded == {"web,bus_alt_connection"}
        return
    assert loaded
    for modules in loaded:
        assert modules.startswith(f"{Series(19).server_wide},bus_alt_connection")
        older = modules.replace(Series(19).server_wide, Series(18).server_wide)
        assert [line for line in comments if re.search(rf"before Odoo 19: .*\b{older}$", line)], comments


@pytest.mark.parametrize("name", ["settings-environment", "published-environment"])
def test_the_environment_is_known(name):
    lines = "\n".join(line for line in block(name).splitlines() if line.startswith("export"))
    done = subprocess.run(["sh", "-c", lines + "\nenv"], env={}, text=True, capture_output=True, check=True)
    variables = [line.partition("=")[0] for line in done.stdout.splitlines() if "IMDISPATCHER" in line]
    assert {re.sub("^odoo_", "", one.lower()) for one in variables} == {"imdispatcher_db_host", "imdispatcher_db_port"}


SOURCES = {path: ast.parse(path.read_text()) for path in sorted(FOLDER.rglob("*.py"))}


# -- what the recipes have in common with what is shipped --------------------------------------------------------------

def shipped(name):
    return ini((REPO / name).read_text())


@pytest.mark.parametrize("name, text", [
    (name, text) for name, text in [*((name or path.stem, text) for path, name, _, text in documents.blocks()),
                                    ("pgbouncer.ini", (REPO / "pgbouncer.ini").read_text())]
    if "[pgbouncer]" in text or "pgbouncer:" in text])
def test_no_pooler_can_be_stopped_by_a_stranger(name, text):
    """CVE-2026-107349: a PgBouncer that ignores startup parameters, and not `options`."""
    for line in re.findall(r"(?m)^\s*ignore_startup_parameters\b.*", text):
        assert "options" in line, line


def test_debian_pgbouncer_is_the_one_that_is_run():
    """The page's pgbouncer.ini pools as the shipped one does, which the tests run with."""
    own, ours = ini(block("debian-pgbouncer-ini")), shipped("pgbouncer.ini")
    assert set(own["databases"]) == set(ours["databases"])
    more = {name: value for name, value in own["pgbouncer"].items() if ours["pgbouncer"].get(name) != value}
    # the package's own paths, and what the doctor asks
    assert set(more) == {"logfile", "pidfile", "unix_socket_dir", "stats_users"}
    assert set(ours["pgbouncer"]) <= set(own["pgbouncer"])


def test_the_compose_override_is_the_deployment_that_is_shipped():
    from compose_spec import PyOptions
    override = block("compose-override")
    PyOptions(apply_merge=True).from_yaml(override).validate()
    services = yaml.safe_load(override)["services"]
    whole = yaml.safe_load((REPO / "docker-compose.yml").read_text())["services"]
    assert services["pgbouncer"]["image"] == whole["pgbouncer"]["image"]
    assert services["pgbouncer"]["entrypoint"] == whole["pgbouncer"]["entrypoint"]
    assert services["odoo"]["image"] == whole["odoo"]["image"]
    # the master password is the deployment's own
    assert services["odoo"]["entrypoint"] == [
        re.sub(r".*ADMIN_PASSWD.*\n", "", part) for part in whole["odoo"]["entrypoint"]]
    assert services["odoo"]["environment"]["PGHOST"] == "pgbouncer"
    assert set(services["odoo"]["volumes"]) <= set(whole["odoo"]["volumes"])


def manifests(name):
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(block(name))}


def test_kubernetes_says_what_the_other_pages_say():
    deployment = manifests("kubernetes-odoo")["Deployment"]["spec"]["template"]["spec"]
    container, = deployment["containers"]
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert {name for name in env if "IMDISPATCHER" in name} <= {row[0].upper() for row in rows("settings-table")}
    assert env["ODOO_SERVER_WIDE_MODULES"] == "base,rpc,web,bus_alt_connection"
    assert env["ODOO_HTTP_INTERFACE"] == "0.0.0.0"
    assert "args" not in container
    # the file is in a volume that is mounted
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volume = mounts[os.path.dirname(env["IMDISPATCHER_DB_PASSWORD_FILE"])]
    secret, = (one["secret"]["secretName"] for one in deployment["volumes"] if one["name"] == volume)
    cluster, pooler = (manifests("kubernetes-postgres")[kind] for kind in ("Cluster", "Pooler"))
    roles = {role["name"]: role for role in cluster["spec"]["managed"]["roles"]}
    assert roles[env["IMDISPATCHER_DB_USER"]]["passwordSecret"]["name"] == secret
    assert roles[env["PGUSER"]]["createdb"] and not roles[env["IMDISPATCHER_DB_USER"]].get("createdb")
    assert env["PGHOST"] == pooler["metadata"]["name"]
    assert env["IMDISPATCHER_DB_HOST"] == cluster["metadata"]["name"] + "-rw"
    assert pooler["spec"]["cluster"]["name"] == cluster["metadata"]["name"]
    ours = shipped("pgbouncer.ini")["pgbouncer"]
    assert pooler["spec"]["pgbouncer"]["poolMode"] == ours["pool_mode"]
    for name, value in pooler["spec"]["pgbouncer"]["parameters"].items():
        assert ours[name] == value, name


def test_the_health_route_is_the_one_that_is_named():
    path = "/bus_alt_connection/health"     # test_health.py asks a server for it
    pages = {name: page.read_text() for name, page in ((page.name, page) for page in documents.PAGES)}
    for name in ("README.rst", "kubernetes.rst", "several-machines.rst", "monitoring.rst"):
        assert set(re.findall(r"/bus_alt_connection/health\w*", pages[name])) == {path}
    probe = yaml.safe_load(block("kubernetes-readiness"))["readinessProbe"]["httpGet"]
    assert probe == {"path": path, "port": "live"}
    container, = manifests("kubernetes-odoo")["Deployment"]["spec"]["template"]["spec"]["containers"]
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[kind]["httpGet"] == {"path": "/web/health", "port": "http"}


def test_what_the_page_of_the_series_names_is_there():
    """As ``module.name``, and ``module.Class.name``."""
    modules = {path.stem: {node.name: node for node in tree.body if hasattr(node, "name")} | {
        target.id: node for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
        if isinstance(target, ast.Name)} for path, tree in SOURCES.items()}
    named = re.findall(r"``(\w+)\.(\w+)(?:\.(\w+))?``", (REPO / "docs/series.rst").read_text())
    named = [(modules[module], *names) for module, *names in named if module in modules]
    assert len(named) > 5
    for module, name, inner in named:
        assert name in module, name
        assert not inner or inner in [getattr(node, "name", "") for node in module[name].body], inner


def test_what_the_page_of_the_series_names_is_there():
    """As ``module.name``, and ``module.Class.name``."""
    modules = {path.stem: {getattr(node, "name", None) or ast.unparse(node).partition(" = ")[0]: node
                           for node in tree.body} for path, tree in SOURCES.items()}
    named = re.findall(r"``(\w+)\.(\w+)(?:\.(\w+))?``", (REPO / "docs/series.rst").read_text())
    named = [(modules[module], *names) for module, *names in named if module in modules]
    assert len(named) > 5
    for module, name, inner in named:
        assert name in module, name
        assert not inner or inner in [getattr(node, "name", "") for node in module[name].body], inner


def test_the_causes_of_the_health_route_are_all_on_its_page():
    said, = re.findall(r"``cause`` is one of (.*?)\. ", one_line((REPO / "docs/monitoring.rst").read_text()))
    causes = {node.args[0].value for node in ast.walk(SOURCES[FOLDER / "errors.py"]) if isinstance(node, ast.Call)
              and getattr(node.func, "id", "") in ("Cause", "permanent", "transient")
              and isinstance(node.args[0], ast.Constant)}
    assert len(causes) > 10 and causes <= set(re.findall(r"``(.*?)``", said))


def test_the_page_of_the_design_names_all_parts():
    """Every state, every module, and all that is patched in Odoo, which the addon's first lines list."""
    text = one_line((REPO / "docs/design.rst").read_text())
    assert all(name in text for name in ("CONNECTING", "VERIFYING", "CATCHING_UP", "LISTENING", "STOPPED"))
    table = text.split("The modules ---")[1].split("What was tried")[0]
    modules = {path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("__")}
    assert modules == {name for name in re.findall(r"``(\w+)``", table) if name != FOLDER.name}
    patched = ast.get_docstring(SOURCES[FOLDER / "__init__.py"]).split("It patches")[1].split("All of it")[0]
    patched = [name for name in re.findall("``(.*?)``", patched) if "." in name]
    assert len(patched) > 6 and all(f"``{name}``" in text for name in patched)


def test_the_page_of_the_manifest_says_what_the_readme_says():
    """The summary, what of the series was run, and the picture."""
    manifest = ast.literal_eval((FOLDER / "__manifest__.py").read_text())
    front = one_line(documents.PAGES[0].read_text())
    run = re.search(r"\*\*Odoo\*\*: (.*?) by the test suite, on every change; (.*?) by part of it, once",
                    front).groups()
    html = one_line((FOLDER / "static/description/index.html").read_text())
    assert manifest["summary"] in html
    for text in (html, one_line((FOLDER / "readme/DESCRIPTION.rst").read_text())):
        assert f"run on Odoo {run[0]} by its test suite and on {run[1]} by part of it, once" in text
    pictures = re.findall(r'src="(.*?)"', html)
    assert pictures and all((FOLDER / "static/description" / name).exists() for name in pictures)
    # and so do the classifiers, and the page about the series
    classified = re.findall(r'"Framework :: Odoo :: (\d+)\.0"', (REPO / "setup.py").read_text())
    assert sorted(classified) == sorted(re.findall(r"\d+", " ".join(run)))
    rows = documents.table("series-table")
    assert classified == [row[0].astext() for row in rows if row[2].astext().startswith("run by")]


def test_pip_knows_the_published_addon_by_another_name():
    from stack.download.python import PUBLISHED
    done = subprocess.run([sys.executable, "setup.py", "--name"], cwd=REPO, text=True, capture_output=True)
    ours = done.stdout.split()[-1]
    assert ours != PUBLISHED
    page = (REPO / "docs/upgrading.rst").read_text()
    assert f"``{PUBLISHED}``" in page and f"``{ours}``" in page
