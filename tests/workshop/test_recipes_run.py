"""What the README and docs/ say is so: their snippets are run on the real stack, their settings are asked in Odoo.

What needs no server is in fast/test_recipes_read.py.

Takes 2 min.
"""
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import time

import psycopg2
import pytest

from stack.clients.client import Session
from stack.clients.flow import INSTANT, Flow
from stack.clients.listeners import direct, wait_listening
from stack.faults.network import Proxy
from stack.machine import Unavailable
from stack.process import DEADLINE, free_port, wait_until
from stack.recipes import changed
from stack.servers.haproxy import HAProxy
from stack.servers.postgres import connect as log_in
from tests import documents
from tests.documents import REPO, block, ini, one_line, options, rows

SOON = 20.0         # seconds after a loss; it is some tenths, and upstream is dark for 50


# -- the settings ------------------------------------------------------------------------------------------------------

# Run by Odoo's interpreter: each odoo.conf is read by Odoo, which loads what is to be loaded server-wide. Told is what
# the addon logs then, and which settings it asks the environment for.
READER = """
import json, logging, os, sys
import odoo
from odoo.modules.module import initialize_sys_path
from odoo.service.server import load_server_wide_modules
from odoo.tools import config

class Asked(dict):
    def get(self, name, default=None):
        self[name] = default
        return default

class Lines(logging.Handler):
    def emit(self, record):
        if record.name.startswith("odoo.addons.bus_alt_connection"):
            lines.append(record.levelname + " " + " ".join(record.getMessage().split()))

def answer(path):
    config._parse_config(["-c", path])
    logging.basicConfig(level=logging.INFO, handlers=[Lines()], force=True)
    load_server_wide_modules()
    from odoo.addons.bus_alt_connection.settings import Settings
    asked = Asked()
    return {"values": Settings(asked).values, "lines": lines,
            "asked": [name for name in asked if name.startswith("IMDISPATCHER_")]}

lines, told = [], {}
config._parse_config(["-c", sys.argv[1]])
initialize_sys_path()
import odoo.addons.bus, odoo.addons.web      # once for all
for path in sys.argv[1:]:
    reader, writer = os.pipe()
    if not os.fork():       # one process a file: options of one would stay for the next
        os.write(writer, json.dumps(answer(path)).encode())
        os._exit(0)
    os.wait()
    os.close(writer)
    told[path] = json.loads(os.read(reader, 65536))
print(json.dumps(told))
"""
CONFS = {name: text for _, name, _, text in documents.blocks() if name and "[options]" in text}
PLAIN = """[options]
db_host = pooler.example
db_port = 6432
db_user = somebody
server_wide_modules = base,web,bus_alt_connection
"""


@pytest.fixture(scope="module")
def loaded(stack, tmp_path_factory):
    """{name: what is told of it} of every odoo.conf in the documentation, and of one without the addon's settings."""
    folder = tmp_path_factory.mktemp("confs")
    secret = folder / "a-file"
    secret.write_text("secret\n")
    odoo, paths = stack.machine.odoo, {}
    for name, text in {"plain": PLAIN, **CONFS}.items():
        # files and folders of other machines; the rest stays as it is written
        text = re.sub(r"(?m)^(imdispatcher_\w+_file|imdispatcher_db_sslrootcert) = .*", rf"\1 = {secret}", text)
        text = re.sub(r"(?m)^(data_dir|addons_path) = .*\n?", "", text)
        addons = ",".join([*odoo.addons, str(REPO)])
        paths[name] = folder / f"{name}.conf"
        paths[name].write_text(text.replace("[options]\n", f"[options]\naddons_path = {addons}\ndata_dir = {folder}\n"))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "ODOO", "IMDISPATCHER"))}
    done = subprocess.run([odoo.command[0], "-c", READER, *map(str, paths.values())],
                          env={**env, "PYTHONDONTWRITEBYTECODE": "1", **odoo.env}, text=True, capture_output=True)
    assert not done.returncode, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return {name: told[str(path)] for name, path in paths.items()}


def test_the_tables_have_every_setting(loaded):
    described = [row[0] for row in rows("settings-table") + rows("timing-table")]
    assert sorted([*described, *documents.GONE]) == sorted(name.lower() for name in loaded["plain"]["asked"])


def connects_to(loaded, name):
    """(hosts, port, database, user) as the addon logs them."""
    line, = (line for line in loaded[name]["lines"] if "The listeners of the bus and of cron connect to" in line)
    hosts, port, database, user = re.search(
        r"INFO .* connect to (.*):([\d,]+)/(\S+) as (.+?)(?:, Odoo's own address: .*)?\.$", line).groups()
    return hosts, port, database, user


def test_the_tables_have_the_defaults(loaded):
    values = loaded["plain"]["values"]
    for option, default, unit, _ in rows("timing-table"):
        name = option[len("imdispatcher_"):]
        assert float(default) == values[name], option
        assert name.endswith("_seconds") and unit == "seconds"
    own = dict(zip(("db_host", "db_port", "db_name", "db_user"), connects_to(loaded, "plain"), strict=True))
    for option, default, _ in rows("settings-table"):
        name = option[len("imdispatcher_"):]
        if default == f"as {name}":
            assert name not in own or own[name] == ini(PLAIN)["options"][name]
        elif name == "db_name":
            assert default == own[name]
        else:
            value = values.get(name)
            value = str(value).lower() if isinstance(value, bool) else value
            assert default in ("none", "as libpq") and value is None or default == value, option


@pytest.mark.parametrize("name", [name for name, text in CONFS.items() if "bus_alt_connection" in text])
def test_an_odoo_conf_is_understood(loaded, name):
    # queue_job is not there
    assert not [line for line in loaded[name]["lines"] if not line.startswith("INFO") and "queue_job" not in line]
    said = ini(CONFS[name])["options"]
    hosts, port, database, user = connects_to(loaded, name)
    assert hosts == said.get("imdispatcher_db_host", said.get("db_host", "the local socket"))
    assert port == said.get("imdispatcher_db_port", said.get("db_port", "5432"))
    assert database == said.get("imdispatcher_db_name", "postgres")
    wanted = said.get("imdispatcher_db_user", said.get("db_user"))
    assert wanted is None or user == wanted


def heartbeat():
    """(the statement, seconds from one to the next at most, how it is run) as the page about the role says."""
    text = one_line((REPO / "docs/access.rst").read_text())
    seconds, statement, run = re.search(
        r"heartbeat every (\d+) s, the statement ``(.*?)``.*?shows ``(.*?)``", text).groups()
    return statement, float(seconds), run


# -- on the real stack -------------------------------------------------------------------------------------------------

def arrives(client, sender, text="here", times=5):
    """A notification that is sent now is pushed, and not found by asking every few seconds.

    Of several one has to be pushed: a poll would make each of them wait for the next one.
    """
    took = []
    for number in range(times):
        sender.send_sql(f"{text} {number}")
        before = time.monotonic()
        while client.next().payload != f"{text} {number}":
            pass
        took.append(time.monotonic() - before)
        if took[-1] < INSTANT:
            return
    raise AssertionError(f"nothing was pushed: {took}")


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
    wait_until(is_refused, DEADLINE, lambda: f"not refused with {words!r} but {said}")


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
        # what it may, and that a heartbeat takes no transaction id, as a NOTIFY would
        cr = connection.cursor()
        cr.execute('LISTEN "imbus"')
        assert ids_taken(cr, heartbeat()[0]) < 20 <= ids_taken(cr, "SELECT pg_notify('imbus', 'mine')")
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
        began = heartbeats(postgres, pid, 4)
        assert min(later - one for one, later in itertools.pairwise(began)) <= heartbeat()[1] + 0.1
        postgres.query("SELECT pg_terminate_backend(%s)", [pid])
        server.wait_log("bus listener is listening again")
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


def heartbeats(postgres, pid, count):
    """When each of so many heartbeats of a backend began, in seconds."""
    began = {}

    def enough():
        query, at = postgres.query("SELECT query, extract(epoch FROM query_start)::float8 FROM pg_stat_activity"
                                   " WHERE pid = %s", [pid])[0]
        began.update({at: query} if query == heartbeat()[2] else {})
        return len(began) == count
    wait_until(enough, DEADLINE, lambda: f"only {len(began)} heartbeats")
    return sorted(began)


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
    wait_until(lambda: logs_in(postgres), DEADLINE, "the old pg_hba.conf is not in force again")
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
        wait_until(is_on("on"), DEADLINE, lambda: f"no TLS after a reload: {postgres.last_lines()}")
        yield folder
    finally:
        for name in said:
            postgres.query(f"ALTER SYSTEM RESET {name}")
        postgres.query("SELECT pg_reload_conf()")
        wait_until(is_on("off"), DEADLINE, "TLS stays on")


def quoted(words, **instead):
    """The page's line that has these words, with other words in it."""
    line, = (line for line in documents.quoted_lines() if words in line)
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
    # a connection with TLS that is lost is no error of TLS, which would be retried slowly
    since = server.log_size()
    postgres.query("SELECT pg_terminate_backend(%s)", wait_listening(postgres, server, "bus"))
    server.wait_log("The bus listener is listening again", since=since)
    assert " ERROR " not in server.log_text(since)
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
    with pgbouncer.changed(databases={"postgres": mode}):
        server = odoo(direct=False, options=options("session-odoo-conf"))
        with Flow(server, pgbouncer, postgres) as flow:
            server.wait_log(r"The bus listener is listening on .* as odoo \(through a pooler\)\.")
            flow.check_pushed()
            pid, = wait_listening(postgres, server, "bus")
            pool, = (row for row in pgbouncer.show("POOLS") if row["database"] == "postgres")
            assert pool["pool_mode"] == "session" and int(pool["sv_active"]) >= 1
            # replaced at once, as with a direct address
            event = time.monotonic()
            postgres.query("SELECT pg_terminate_backend(%s)", [pid])
            assert flow.back_after(event) < SOON
            # the pooler's restart takes it along
            since = server.log_size()
            pgbouncer.restart()
            server.wait_log("The bus listener is listening again", since=since)
            flow.check()
        assert "does not receive NOTIFYs" not in server.log_text()


def haproxy(stack, name, words):
    """An HAProxy of this stack with a page's configuration: other addresses, and checks that come ten times as fast."""
    port = free_port()
    text = changed(re.sub(r"bind \*:\d+", f"bind 127.0.0.1:{port}", block(name)), words)
    text = re.sub(r"inter (\d)s", r"inter \g<1>00ms", text) + "\n"
    try:
        return stack.add(HAProxy(stack.machine, stack.folder / f"haproxy-{port}", port, text)).start()
    except Unavailable as exc:
        pytest.skip(str(exc))


class Front:
    """Several Odoos behind a load balancer, as a client sees them: one address for all."""

    def __init__(self, proxy, odoo):
        self.url = self.evented_url = f"http://{proxy.host}:{proxy.port}"
        self.facts, self.system_database = odoo.facts, odoo.system_database


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
        wait_until(lambda: proxy.states("live") == wanted, DEADLINE, lambda: f"HAProxy sees {proxy.states('live')}")

    def served(backend):
        return sum(int(row["stot"]) for row in proxy.servers(backend).values())

    wait_states("UP", "UP")
    # HAProxy begins with all up; a login goes to one that it has really asked
    wait_until(lambda: all("L7OK" in row["check_status"] for row in proxy.servers("pages").values()), DEADLINE,
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
    wait_until(lambda: served("live"), DEADLINE, "HAProxy sends nobody to the servers that live")
    assert not served("live_any")
    assert int(proxy.servers("live")["odoo1"]["stot"]) == 0
    arrives(client, sender)
    # none can: better slowly than not at all
    paths[1].refuse()
    wait_states("DOWN", "DOWN")
    late = Session(front, "demo").subscribe([sender.channel], last=sender.send_sql("seen before")).wait_subscribed()
    request.addfinalizer(late.close)
    wait_until(lambda: served("live_any"), DEADLINE, "HAProxy sends nobody anywhere")
    sender.send_sql("slowly")
    assert late.next().payload == "slowly"
    # and back
    for path in paths:
        path.heal()
    wait_states("UP", "UP")
    arrives(late, sender, "quickly")
