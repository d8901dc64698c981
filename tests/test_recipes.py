"""What the README and docs/ say is so: their snippets are taken from the pages and run, their tables are compared.

The first half reads; the second runs on the real stack what can run on one machine.
"""
import ast
import http.server
import importlib.util
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib

import documents
import psycopg2
import pytest
import yaml
from documents import REPO, block, ini, literals, one_line, options
from faults import Proxy
from flow import Flow, when_serves
from haproxy import HAProxy
from listeners import direct, wait_listening

from bench.report import BEGIN, END
from stack import Stack
from stack.client import Session
from stack.machine import Unavailable
from stack.postgres import connect as log_in
from stack.process import free_port, wait_until

ADDON = REPO / "bus_alt_connection"
IN_TIME = 1.0       # seconds: a notification that is pushed; one that is asked for takes up to 5


def addon_module(name):
    """A module of the addon that needs no Odoo."""
    spec = importlib.util.spec_from_file_location("documented_" + name, ADDON / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


trouble, diagnosis = addon_module("trouble"), addon_module("diagnosis")


# -- the pages ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", documents.PAGES, ids=documents.name_of)
def test_a_page_is_valid(path):
    _, complaints = documents.read(path)
    assert not complaints


@pytest.mark.parametrize("path", documents.PAGES, ids=documents.name_of)
def test_links_lead_somewhere(path):
    missing = {target for page, target in documents.links() if page == path and not (page.parent / target).exists()}
    assert not missing


@pytest.mark.parametrize("path", documents.PAGES, ids=documents.name_of)
def test_paths_and_commands_that_are_named_exist(path):
    text = path.read_text()
    for name in re.findall(r"\b(?:tests|docs|bus_alt_connection|stack|bench)/[\w/]+\.\w+", text):
        # the pages that a ./dev command writes are links, and checked as such
        assert (REPO / name).exists() or re.search(r"`[^`]*<%s>`__" % re.escape(name), text), name
    commands = set(re.findall(r"\./dev ([a-z-]+)", text))
    known = set(re.findall(r"^  \./dev ([a-z-]+)", (REPO / "dev").read_text(), re.M))
    assert commands <= known


def test_the_readme_shows_what_the_bench_measured():
    text = documents.PAGES[0].read_text()
    table = text[text.index(BEGIN) + len(BEGIN):text.index(END)].strip()
    assert "this addon" in table and table in (REPO / "docs" / "performance.rst").read_text()


def test_every_page_is_in_the_index():
    linked = {target for page, target in documents.links() if page.name == "index.rst"}
    assert {path.name for path in documents.PAGES[1:]} - {"index.rst"} <= linked


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

# Run by Odoo's interpreter: what settings.py knows, and what it makes of files of odoo.conf.
READER = """
import importlib.util, json, os, sys
import odoo
import odoo.sql_db
from odoo.tools import config
spec = importlib.util.spec_from_file_location("settings", sys.argv[1])
settings = importlib.util.module_from_spec(spec)
spec.loader.exec_module(settings)
plain = settings.Settings(environ={})
told = {
    "names": {kind: list(getattr(settings, kind)) for kind in ("CONNECTION", "TIMING", "METRICS")},
    "values": plain.values,
    "unset is Odoo's own": [{key: value for key, value in info.items() if value} for info in plain.direct()]
    == [plain.pooled()],
    "database": plain.direct()[0]["dbname"],
    "files": {},
}
for path in sys.argv[2:]:
    reader, writer = os.pipe()
    if not os.fork():       # one process a file: options of one would stay for the next
        config._parse_config(["-c", path])
        found = settings.Settings(environ={})
        modules = config["server_wide_modules"]
        answer = {"problems": found.problems, "direct": found.direct(), "pooled": found.pooled(),
                  "loaded": modules.split(",") if isinstance(modules, str) else list(modules)}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.wait()
    os.close(writer)
    told["files"][path] = json.loads(os.read(reader, 65536))
print(json.dumps(told))
"""
CONFS = {name: text for _, name, _, text in documents.blocks() if name and "[options]" in text}


@pytest.fixture(scope="module")
def settings(stack, tmp_path_factory):
    """What the addon's settings are, and what it makes of every odoo.conf in the documentation, asked in Odoo."""
    folder = tmp_path_factory.mktemp("confs")
    secret = folder / "a-file"
    secret.write_text("secret\n")
    paths = {}
    for name, text in CONFS.items():
        # files and folders of other machines; the rest stays as it is written
        text = re.sub(r"(?m)^(imdispatcher_\w+_file|imdispatcher_db_sslrootcert) = .*", rf"\1 = {secret}", text)
        text = re.sub(r"(?m)^(data_dir|addons_path) = .*\n?", "", text)
        paths[name] = folder / f"{name}.conf"
        paths[name].write_text(text)
    odoo = stack.machine.odoo
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "ODOO", "IMDISPATCHER"))}
    done = subprocess.run([odoo.command[0], "-c", READER, str(ADDON / "settings.py"), *map(str, paths.values())],
                          env={**env, "PYTHONDONTWRITEBYTECODE": "1", **odoo.env}, text=True, capture_output=True)
    assert not done.returncode, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    told["files"] = {name: told["files"][str(path)] for name, path in paths.items()}
    return told


def rows(name):
    """The rows of a table of settings: [(option, variable, default, …)]"""
    found = []
    for option, variable, *cells in documents.table(name):
        (option,), (variable,) = literals(option), literals(variable)
        assert variable == option.upper()
        found.append((option, *(one_line(cell.astext()) for cell in cells)))
    return found


def test_the_readme_has_every_setting(settings):
    names = settings["names"]
    ordered = [f"imdispatcher_{name}" for name in names["CONNECTION"] + names["METRICS"]]
    by_name = {f"imdispatcher_{name}" for name in names["METRICS"]}
    described = [row[0] for row in rows("settings-table")]
    assert [name for name in described if name not in by_name] == [n for n in ordered if n not in by_name]
    assert set(described) == set(ordered)
    assert [row[0] for row in rows("timing-table")] == [f"imdispatcher_{name}" for name in names["TIMING"]]


def test_the_readme_has_the_defaults(settings):
    values = settings["values"]
    for option, default, unit, _ in rows("timing-table"):
        name = option[len("imdispatcher_"):]
        assert float(default) == values[name], option
        assert unit == ("a second" if name.endswith("_per_second") else "seconds")
        assert name.endswith("_seconds") or unit == "a second"
    for option, default, _ in rows("settings-table"):
        name = option[len("imdispatcher_"):]
        if default == f"as {name}":
            assert settings["unset is Odoo's own"]
        elif name == "db_name":
            assert default == settings["database"]
        else:
            assert default in ("none", "as libpq") and values.get(name) is None or default == values[name], option


def test_no_other_setting_is_named(settings):
    known = {f"imdispatcher_{name}" for names in settings["names"].values() for name in names}
    for path in documents.PAGES:
        for name in re.findall(r"\b(?:ODOO_)?IMDISPATCHER_\w+|\bimdispatcher_\w+", path.read_text()):
            name = re.sub("^odoo_", "", name.lower())
            assert name in known or any(one.startswith(name) for one in known) and name.endswith("_"), (path, name)


@pytest.mark.parametrize("name", CONFS)
def test_an_odoo_conf_is_understood(settings, name):
    found = settings["files"][name]
    assert found["problems"] == []
    said = ini(CONFS[name])["options"]
    if "server_wide_modules" in said:
        assert "bus_alt_connection" in found["loaded"]
    hosts = said.get("imdispatcher_db_host", said.get("db_host", "")).split(",")
    assert [info.get("host") or "" for info in found["direct"]] == hosts
    port = said.get("imdispatcher_db_port", said.get("db_port"))
    assert {str(info["port"]) if info.get("port") else None for info in found["direct"]} == {port}
    assert {info["dbname"] for info in found["direct"]} == {said.get("imdispatcher_db_name", "postgres")}
    for option in ("user", "sslmode"):
        wanted = said.get(f"imdispatcher_db_{option}", found["pooled"].get(option))
        assert {info.get(option) for info in found["direct"]} == {wanted}
    if "imdispatcher_db_password_file" in said:
        assert {info["password"] for info in found["direct"]} == {"secret"}


@pytest.mark.parametrize("name", ["readme-environment", "published-environment"])
def test_the_environment_is_known(settings, name):
    lines = "\n".join(line for line in block(name).splitlines() if line.startswith("export"))
    done = subprocess.run(["sh", "-c", lines + "\nenv"], env={}, text=True, capture_output=True, check=True)
    variables = [line.partition("=")[0] for line in done.stdout.splitlines() if "IMDISPATCHER" in line]
    assert {re.sub("^odoo_", "", one.lower()) for one in variables} == {"imdispatcher_db_host", "imdispatcher_db_port"}


# -- the log lines -----------------------------------------------------------------------------------------------------

LEVELS = {"info": "INFO", "warning": "WARNING", "error": "ERROR", "exception": "ERROR"}


def printed_by_trouble(reason, had_one, name="bus"):
    """The line of the log when a listener is lost, made by the addon."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger(trouble.__name__)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        trouble.Trouble(name).lost(reason, had_one)
    finally:
        logger.removeHandler(handler)
    return one_line(lines[0])


def written():
    """{template: levels} of every log line in the addon's code."""
    found = {}
    for path in ADDON.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            method, owner, texts = node.func.attr, ast.unparse(node.func.value), node.args
            if owner == "_logger" and method in LEVELS and isinstance(texts[0], ast.Constant):
                found[texts[0].value] = {LEVELS[method]}
            elif owner.endswith("trouble") and method == "defect":
                found[texts[0].value] = {"ERROR"}
            elif owner == "_logger" and method == "log":
                # what it says of a loss is made of parts: have the addon make it
                remedy = trouble.OTHERWISE[1][1]
                for had_one in (True, False):
                    template = printed_by_trouble("WHY", had_one).replace(remedy, "%s").replace("WHY", "%s")
                    found[template] = {"WARNING"} if had_one else {"ERROR", "WARNING"}
    return found


def pattern(template):
    template = template.replace("The %s listener", "The bus listener")
    return re.sub(r"%[.\d]*[sdgf]", ".+", re.escape(template).replace(r"\%", "%").replace(r"\.", "."))


def fits(template, line):
    return re.fullmatch(pattern(one_line(template)), line, re.S)


def test_the_readme_has_every_log_line():
    templates = written()
    assert len(templates) > 15
    described = set()
    for line, level, _ in documents.table("log-lines-table"):
        line, = literals(line)
        found = [template for template in templates if fits(template, line.replace("…", "@"))]
        assert found, f"nothing in the code says: {line}"
        assert set(level.astext().split(", ")) in [templates[template] for template in found], line
        described.update(found)
    assert set(templates) <= described


def remedied(line):
    """What the addon prints of the reason that this line gives."""
    head = re.fullmatch(r"The (bus|cron) listener (lost its connection to|cannot connect to) (.*)", line)
    name, verb, rest = head.groups()
    remedies = [row[2][1] for row in trouble.REMEDIES] + [trouble.OTHERWISE[1]]
    for remedy in remedies:
        reason, found, _ = rest.partition(f". {remedy} ")
        if found:
            return printed_by_trouble(reason, verb.startswith("lost"), name)
    return f"a remedy of the addon in: {line}"


def misrouted(line):
    """What the addon prints when it LISTENs where this line says that it does."""
    template, = (node.value for node in ast.walk(ast.parse((ADDON / "healing.py").read_text()))
                 if isinstance(node, ast.Constant) and "Until then" in str(node.value))
    place = re.search(r"[\w.]+:\d+/\w+ as \w+", line)[0]
    told = re.search(r" \(PostgreSQL says of itself:[^)]*\)", line)
    seen = re.search(r'database "(\w+)" .* go to "(\w+)"', line)
    databases = seen.groups() if seen else ("one", "one")
    for servers, pooler in ((("now", "then"), False), (("now", "now"), False), (("now", "now"), True)):
        found = diagnosis.undelivered(place, (servers[0], databases[0]), (servers[1], databases[1]), pooler, 3)
        printed = template % (found.text, found.remedy, told[0] if told else "", 5)
        if f"The bus listener hears nothing: {printed}" == line:
            return line
    return f"a diagnosis of the addon in: {line}"


def quoted_lines():
    """Whole log lines in the pages: in the README's table of faults, and in blocks."""
    for row in documents.table("bad-day-table"):
        for line in literals(row[1]):
            if line.startswith(("The bus", "Left out", "Degraded:")):
                yield line
    for _, _, _, text in documents.blocks():
        for line in text.splitlines():
            if line.startswith("The ") and " listener" in line:
                yield one_line(line)


@pytest.mark.parametrize("line", list(quoted_lines()))
def test_a_quoted_line_is_what_the_addon_prints(line):
    if re.match(r"The \w+ listener (lost|cannot)", line):
        assert remedied(line) == line
    elif "hears nothing" in line:
        assert misrouted(line) == line
    else:
        loosest = {"The %s listener %s %s"}
        assert [template for template in written() if template not in loosest and fits(template, line)]


def test_all_of_the_table_of_faults_is_read():
    lines = list(quoted_lines())
    assert len([line for line in lines if "cannot connect" in line]) >= 8
    assert len([line for line in lines if "hears nothing" in line]) == 3


# -- what the recipes have in common with what is shipped --------------------------------------------------------------

def shipped(name):
    return ini((REPO / name).read_text())


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
    assert services["odoo"]["environment"]["HOST"] == "pgbouncer"
    assert set(services["odoo"]["volumes"]) <= set(whole["odoo"]["volumes"])


def manifests(name):
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(block(name))}


def test_kubernetes_says_what_the_addon_reads(settings):
    deployment = manifests("kubernetes-odoo")["Deployment"]["spec"]["template"]["spec"]
    container, = deployment["containers"]
    env = {one["name"]: one.get("value") for one in container["env"]}
    known = {f"IMDISPATCHER_{name.upper()}" for name in settings["names"]["CONNECTION"]}
    assert {name for name in env if "IMDISPATCHER" in name} <= known
    assert "--load=base,web,bus_alt_connection" in container["args"]
    # the file is in a volume that is mounted
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volume = mounts[os.path.dirname(env["IMDISPATCHER_DB_PASSWORD_FILE"])]
    secret, = (one["secret"]["secretName"] for one in deployment["volumes"] if one["name"] == volume)
    cluster, pooler = (manifests("kubernetes-postgres")[kind] for kind in ("Cluster", "Pooler"))
    roles = {role["name"]: role for role in cluster["spec"]["managed"]["roles"]}
    assert roles[env["IMDISPATCHER_DB_USER"]]["passwordSecret"]["name"] == secret
    assert roles[env["USER"]]["createdb"] and not roles[env["IMDISPATCHER_DB_USER"]].get("createdb")
    assert env["HOST"] == pooler["metadata"]["name"]
    assert env["IMDISPATCHER_DB_HOST"] == cluster["metadata"]["name"] + "-rw"
    assert pooler["spec"]["cluster"]["name"] == cluster["metadata"]["name"]
    ours = shipped("pgbouncer.ini")["pgbouncer"]
    assert pooler["spec"]["pgbouncer"]["poolMode"] == ours["pool_mode"]
    for name, value in pooler["spec"]["pgbouncer"]["parameters"].items():
        assert ours[name] == value, name


def test_the_health_route_is_the_one_that_is_named():
    path, = re.findall(r'^PATH = "(.*)"', (ADDON / "health.py").read_text(), re.M)
    pages = {name: page.read_text() for name, page in ((page.name, page) for page in documents.PAGES)}
    for name in ("README.rst", "kubernetes.rst", "several-machines.rst", "monitoring.rst"):
        assert set(re.findall(r"/bus_alt_connection/health\w*", pages[name])) == {path}
    probe = yaml.safe_load(block("kubernetes-readiness"))["readinessProbe"]["httpGet"]
    assert probe == {"path": path, "port": "live"}
    container, = manifests("kubernetes-odoo")["Deployment"]["spec"]["template"]["spec"]["containers"]
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[kind]["httpGet"] == {"path": "/web/health", "port": "http"}


def test_pip_knows_the_published_addon_by_another_name():
    from stack.python import PUBLISHED
    done = subprocess.run([sys.executable, "setup.py", "--name"], cwd=REPO, text=True, capture_output=True)
    ours = done.stdout.split()[-1]
    assert ours != PUBLISHED
    page = (REPO / "docs/published-addon.rst").read_text()
    assert f"``{PUBLISHED}``" in page and f"``{ours}``" in page


def test_heartbeats_a_day(settings):
    figure, = re.findall(r"([\d,]+) a day", one_line((REPO / "docs/role.rst").read_text()))
    assert int(figure.replace(",", "")) == 24 * 3600 / settings["values"]["heartbeat_seconds"]


# -- on the real stack -------------------------------------------------------------------------------------------------

def arrives(client, sender, text="here"):
    """A notification that is sent now is pushed, and not found by asking."""
    sender.send_sql(text)
    before = time.monotonic()
    while True:
        notification = client.next(timeout=IN_TIME)
        assert notification, "nothing was pushed"
        if notification.payload == text:
            return time.monotonic() - before


def refused(connect, words):
    """Wait until a login is refused with these words: a reload takes a moment to be in force."""
    said = []

    def is_refused():
        try:
            connect().close()
            return False
        except psycopg2.OperationalError as exc:
            said[:] = [str(exc)]
            return words in str(exc)
    wait_until(is_refused, 10, lambda: f"not refused with {words!r} but {said}")


def denied(connection, sql):
    with pytest.raises(psycopg2.errors.InsufficientPrivilege), connection.cursor() as cr:
        cr.execute(sql)


def test_a_role_that_may_only_listen(stack, odoo, bus, postgres, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("only for listening\n")

    def connect(dbname="postgres"):
        return log_in(postgres.host, postgres.port, dbname, "odoo_listener", "only for listening")

    def public():
        return [postgres.query(f"SELECT has_database_privilege('public', %s, '{right}')", [name])[0][0]
                for name in ("postgres", "demo") for right in ("CONNECT", "TEMPORARY")]
    before = public()
    server = None
    try:
        postgres.query(block("role-create").replace("change me", "only for listening"))
        connection = connect("demo")        # not yet kept out, and may read nothing all the same
        denied(connection, "SELECT * FROM bus_bus")
        denied(connection, "SELECT * FROM res_users")
        connection.close()
        postgres.query(block("role-database"))
        postgres.query(block("role-schema"))
        assert public() == [False] * 4
        # what it may not do
        refused(lambda: connect("demo"), 'permission denied for database "demo"')
        connection = connect()
        for sql in ("CREATE TABLE mine (id int)", "CREATE TEMPORARY TABLE mine (id int)", "CREATE DATABASE mine",
                    "CREATE ROLE mine", "SELECT * FROM pg_authid"):
            denied(connection, sql)
        # what it may, and that a NOTIFY takes a transaction id
        cr = connection.cursor()
        cr.execute('LISTEN "imbus"')
        assert ids_taken(cr, "SELECT 1") < 20 <= ids_taken(cr, "SELECT pg_notify('imbus', 'mine')")
        cr.execute("SELECT DISTINCT query FROM pg_stat_activity WHERE usename <> current_user AND query <> ''")
        assert cr.fetchall() in ([], [("<insufficient privilege>",)])
        # Odoo with it
        server = odoo(options=options("role-odoo-conf", imdispatcher_db_host=postgres.host,
                                      imdispatcher_db_port=postgres.port, imdispatcher_db_password_file=secret))
        client, sender = bus(server)
        pid, = wait_listening(postgres, server, "bus")
        seen = {row[0]: row for row in postgres.query(block("readme-activity"))}
        assert seen[pid][1:] == ("odoo_listener", direct(postgres, server, "bus")[0][1], "idle")
        arrives(client, sender)
        postgres.query("SELECT pg_terminate_backend(%s)", [pid])
        server.wait_log("bus listener is back")
        arrives(client, sender, "again")
        # full: the limit is named
        postgres.query("ALTER ROLE odoo_listener CONNECTION LIMIT 0")
        refused(connect, 'too many connections for role "odoo_listener"')
        connection.close()
    finally:
        if server:
            server.kill()
        postgres.query(block("role-drop"))
    assert public() == before
    assert not postgres.query("SELECT 1 FROM pg_roles WHERE rolname = 'odoo_listener'")


def ids_taken(cr, sql, times=20):
    """How many transaction ids were used up while a statement ran some times."""
    now = "SELECT txid_snapshot_xmax(txid_current_snapshot())"
    cr.execute(now)
    before, = cr.fetchone()
    for _ in range(times):
        cr.execute(sql)
    cr.execute(now)
    return cr.fetchone()[0] - before


@pytest.fixture
def hba(postgres):
    """Write pg_hba.conf: these lines, and the superuser's below them."""
    path = postgres.data / "pg_hba.conf"
    before = path.read_text()
    postgres.query("CREATE ROLE odoo_listener LOGIN PASSWORD 'listens'")

    def write(lines):
        # all of the recipe's machines are this one
        path.write_text(re.sub(r"192\.0\.2\.\d+/\d+", "127.0.0.1/32", lines)
                        + "\nhost all postgres 127.0.0.1/32 scram-sha-256\n")
        check, reload = block("pg-hba-check").strip().splitlines()
        assert postgres.query(check) == []
        postgres.query(reload)
    yield write
    path.write_text(before)
    postgres.query("SELECT pg_reload_conf()")
    wait_until(lambda: logs_in(postgres), 10, "the old pg_hba.conf is not in force again")
    postgres.query("DROP ROLE odoo_listener")


def logs_in(postgres):
    try:
        postgres.connect("demo", user="odoo").close()
        return True
    except psycopg2.OperationalError:
        return False


def test_pg_hba(hba, postgres):
    def listener(dbname="postgres"):
        return log_in(postgres.host, postgres.port, dbname, "odoo_listener", "listens")
    hba(block("pg-hba"))
    refused(lambda: listener("demo"), "pg_hba.conf rejects connection")
    listener().close()
    for dbname in ("postgres", "demo"):
        postgres.connect(dbname, user="odoo").close()
    refused(lambda: postgres.connect(user="postgres", dbname="demo", host=postgres.socket_dir), "no pg_hba.conf entry")

    # without a role of its own: the pooler's line, here left out, is what lets odoo in elsewhere
    hba(block("pg-hba-same-role"))
    refused(lambda: postgres.connect("demo", user="odoo"), "no pg_hba.conf entry")
    postgres.connect(user="odoo").close()


def test_the_check_of_pg_hba_finds_a_mistake(hba):
    with pytest.raises(AssertionError, match="invalid"):
        hba("host all odoo 192.0.2.10/32 scram-sha-265")


@pytest.fixture(scope="module")
def tls(stack, tmp_path_factory):
    """PostgreSQL with the certificate of the recipe, made by its commands: the folder with ca.crt and other/ca.crt."""
    if not shutil.which("openssl"):
        pytest.skip("the recipe's certificates need the program openssl")
    postgres = stack.postgres
    folder = tmp_path_factory.mktemp("tls")
    # by address: the name of this machine may stand for several
    commands = re.sub("DNS:pg.example", "IP:127.0.0.1", block("tls-certificates")).replace("pg.example", "127.0.0.1")
    for place in (folder, folder / "other"):
        place.mkdir(exist_ok=True)
        subprocess.run(["sh", "-e"], input=commands, cwd=place, text=True, check=True, capture_output=True)
    said = ini("[postgresql]\n" + block("tls-postgresql-conf"))["postgresql"]
    for name in ("server.key", "server.crt"):
        target = postgres.data / name
        shutil.copyfile(folder / name, target)
        target.chmod(0o600)
        if stack.machine.run_as:
            os.chown(target, *stack.machine.run_as)

    def is_on(state):
        return lambda: postgres.query("SHOW ssl")[0][0] == state
    try:
        for name, value in said.items():
            postgres.query(f"ALTER SYSTEM SET {name} = {value}")
        postgres.query("SELECT pg_reload_conf()")
        wait_until(is_on("on"), 10, lambda: f"no TLS after a reload: {postgres.last_lines()}")
        yield folder
    finally:
        for name in said:
            postgres.query(f"ALTER SYSTEM RESET {name}")
        postgres.query("SELECT pg_reload_conf()")
        wait_until(is_on("off"), 10, "TLS stays on")


def quoted(words, **instead):
    """The page's line that has these words, with other words in it."""
    line, = (line for line in quoted_lines() if words in line)
    for old, new in instead.items():
        line = line.replace(f"{old}.example:5432", new).replace(f'"{old}.example"', f'"{new.partition(":")[0]}"')
    return line


def test_tls_with_verify_full(tls, odoo, bus, postgres, request, tmp_path):
    # another address of this machine, which is not in the certificate
    proxy = Proxy((postgres.host, postgres.port), listener=socket.create_server(("127.0.0.2", 0)))
    request.addfinalizer(proxy.close)
    ca = tmp_path / "ca.crt"
    shutil.copyfile(tls / "other" / "ca.crt", ca)
    server, misnamed = (
        odoo(ready=False, options=options("tls-odoo-conf", imdispatcher_db_host=host, imdispatcher_db_port=port,
                                          imdispatcher_db_sslrootcert=root))
        for host, port, root in ((postgres.host, postgres.port, ca), (proxy.host, proxy.port, tls / "ca.crt")))
    # of another authority
    client, sender = bus(server.wait_ready())
    line = one_line(server.wait_log(r"ERROR .*The bus listener cannot connect to .*")[0])
    assert quoted("certificate verify failed", pg=f"{postgres.host}:{postgres.port}") in line
    assert not direct(postgres, server)
    # the right one is taken at the next connect
    shutil.copyfile(tls / "ca.crt", ca)
    wait_listening(postgres, server, "bus")
    arrives(client, sender)
    ours = {name: (ssl, version) for name, ssl, version in postgres.query(block("tls-check"))
            if name.endswith(f" {server.pid}")}
    assert any(" bus " in name for name in ours)
    assert all(ssl and version.startswith("TLS") for ssl, version in ours.values()), ours
    # for another name
    bus(misnamed.wait_ready())
    line = one_line(misnamed.wait_log(r"ERROR .*The bus listener cannot connect to .*")[0])
    assert quoted("does not match host name", pg=postgres.host, db=f"{proxy.host}:{proxy.port}") in line
    assert not direct(postgres, misnamed)


def test_nobody_without_tls(tls, hba, postgres):
    hba(block("tls-pg-hba"))

    def listener(sslmode):
        return log_in(postgres.host, postgres.port, "postgres", "odoo_listener", "listens", sslmode=sslmode)
    refused(lambda: listener("disable"), "no pg_hba.conf entry")
    listener("require").close()


def test_one_database_in_session_mode(odoo, bus, pgbouncer, postgres):
    said = ini(block("session-pgbouncer-ini"))
    mode = re.sub(r"host=\S+ port=\S+ ", "", said["databases"]["postgres"])
    assert said["pgbouncer"]["pool_mode"] == pgbouncer.show("CONFIG")[0].get("pool_mode", "transaction")
    pgbouncer.databases["postgres"] = mode
    try:
        pgbouncer.reload()
        pgbouncer.command("RECONNECT")
        server = odoo(direct=False, options=options("session-odoo-conf"))
        with Flow(server, pgbouncer, postgres) as flow:
            server.wait_log(r"The bus listener is connected to .* as odoo \(through a pooler\)\.")
            flow.wait_received(4)
            assert flow.slowest() < IN_TIME
            pid, = wait_listening(postgres, server, "bus")
            pool, = (row for row in pgbouncer.show("POOLS") if row["database"] == "postgres")
            assert pool["pool_mode"] == "session" and int(pool["sv_active"]) >= 1
            # replaced at once, as with a direct address
            event = time.monotonic()
            postgres.query("SELECT pg_terminate_backend(%s)", [pid])
            assert flow.back_after(event) < IN_TIME
            # the pooler's restart takes it along
            since = server.log_size()
            pgbouncer.restart()
            server.wait_log("The bus listener is back", since=since)
            flow.check()
        assert "hears nothing" not in server.log_text()
    finally:
        del pgbouncer.databases["postgres"]
        pgbouncer.reload()
        pgbouncer.command("RECONNECT")


class Patroni(http.server.ThreadingHTTPServer):
    """What HAProxy asks of Patroni: 200 if the PostgreSQL beside it is a primary, else 503."""

    daemon_threads = True

    def __init__(self, postgres):
        self.postgres = postgres
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(http.server.BaseHTTPRequestHandler):
    def do_OPTIONS(self):
        assert self.path == "/primary"
        try:
            primary = not self.server.postgres.query("SELECT pg_is_in_recovery()")[0][0]
        except psycopg2.Error:
            primary = False
        self.send_response(200 if primary else 503)
        self.end_headers()

    def log_message(self, *args):
        pass


def haproxy(stack, name, words):
    """An HAProxy of this stack with a page's configuration: other addresses, and checks that come ten times as fast."""
    port = free_port()
    text = re.sub(r"bind \*:\d+", f"bind 127.0.0.1:{port}", block(name))
    for old, new in words.items():
        assert old in text
        text = text.replace(old, new)
    text = re.sub(r"inter (\d)s", r"inter \g<1>00ms", text) + "\n"
    try:
        return stack.add(HAProxy(stack.machine, stack.folder / f"haproxy-{port}", port, text)).start()
    except Unavailable as exc:
        pytest.skip(str(exc))


def test_a_primary_that_moves(stack):
    with Stack(machine=stack.machine) as own:
        own.database("demo")
        standby = own.add(own.postgres.standby(own.folder / "standby"))
        standby.start()
        words = {}
        for name, postgres in (("pg1", own.postgres), ("pg2", standby)):
            words[f"{name}.example:5432 check port 8008"] = (
                f"{postgres.host}:{postgres.port} check port {Patroni(postgres).server_port}")
        proxy = haproxy(own, "failover-haproxy", words)
        wait_until(lambda: proxy.states("primary") == {"pg1": "UP", "pg2": "DOWN"}, 10,
                   lambda: f"HAProxy sees {proxy.states('primary')}")
        # PgBouncer goes through it
        said = ini(block("failover-pgbouncer-ini"))
        assert said["databases"] == {"*": "host=haproxy.example port=5000"}
        own.pgbouncer.settings.update(said["pgbouncer"])
        own.pgbouncer.target = (proxy.host, proxy.port)
        own.pgbouncer.reload()
        own.pgbouncer.command("RECONNECT")
        ways = {
            "through HAProxy": options("failover-odoo-haproxy", imdispatcher_db_host=proxy.host,
                                       imdispatcher_db_port=proxy.port),
            "all hosts": options("failover-odoo-hosts", imdispatcher_db_host=f"{own.postgres.host},{standby.host}",
                                 imdispatcher_db_port=f"{own.postgres.port},{standby.port}"),
        }
        servers = [own.odoo().start("demo", workers=0, options=way, ready=False) for way in ways.values()]
        for server in servers:
            server.wait_ready()
        with Flow(servers[0], own.pgbouncer, own.postgres) as one, Flow(servers[1], own.pgbouncer, own.postgres) as two:
            for server in servers:
                wait_listening(own.postgres, server, "bus")
            own.postgres.kill()
            standby.promote()
            promoted = time.monotonic()
            event = when_serves(own.pgbouncer)
            assert event - promoted < 5.0       # server_login_retry
            for flow, server in zip((one, two), servers, strict=True):
                assert flow.back_after(event) < 5.0
                wait_listening(standby, server, "bus")
                later = time.monotonic()
                flow.wait_received(2, since=later)
                assert flow.slowest(since=later) < IN_TIME
        assert proxy.states("primary") == {"pg1": "DOWN", "pg2": "UP"}


class Front:
    """Several Odoos behind a load balancer, as a client sees them: one address for all."""

    def __init__(self, proxy, odoo):
        self.url = self.evented_url = f"http://{proxy.host}:{proxy.port}"
        self.facts = odoo.facts


def test_several_machines(stack, odoo, bus, postgres, request):
    paths = [Proxy((postgres.host, postgres.port)) for _ in range(2)]
    for path in paths:
        request.addfinalizer(path.close)
    machines = [odoo(ready=False, options=options("machines-odoo-conf", imdispatcher_db_host=path.host,
                                                  imdispatcher_db_port=path.port)) for path in paths]
    words = {}
    for number, machine in enumerate(machines, 1):
        machine.wait_ready()
        words.update({f"odoo{number}.example:{port}": f"127.0.0.1:{machine.http_port}" for port in (8072, 8069)})
    proxy = haproxy(stack, "machines-haproxy", words)
    front = Front(proxy, machines[0])

    def wait_states(first, second):
        wanted = {"odoo1": first, "odoo2": second}
        wait_until(lambda: proxy.states("live") == wanted, 20, lambda: f"HAProxy sees {proxy.states('live')}")

    def served(backend):
        return sum(int(row["stot"]) for row in proxy.servers(backend).values())

    wait_states("UP", "UP")
    # HAProxy begins with all up; a login goes to one that it has really asked
    wait_until(lambda: all("L7OK" in row["check_status"] for row in proxy.servers("pages").values()), 60,
               lambda: f"HAProxy sees {proxy.states('pages')}")
    for machine in machines:        # somebody on each, so that each listens
        client, _ = bus(machine)
        wait_listening(postgres, machine, "bus")
    wait_states("UP", "UP")
    # one cannot listen: whoever comes is sent to the other
    paths[0].refuse()
    wait_states("DOWN", "UP")
    client, sender = bus(front)
    # a poll is on its way when its client says so
    wait_until(lambda: served("live"), 10, "HAProxy sends nobody to the servers that live")
    assert not served("live_any")
    assert int(proxy.servers("live")["odoo1"]["stot"]) == 0
    arrives(client, sender)
    # none can: better slowly than not at all
    paths[1].refuse()
    wait_states("DOWN", "DOWN")
    late = Session(front, "demo").subscribe([sender.channel], last=sender.send_sql("seen before")).wait_subscribed()
    request.addfinalizer(late.close)
    wait_until(lambda: served("live_any"), 10, "HAProxy sends nobody anywhere")
    sender.send_sql("slowly")
    assert late.next(timeout=15).payload == "slowly"
    # and back
    for path in paths:
        path.heal()
    wait_states("UP", "UP")
    arrives(late, sender, "quickly")
