"""The doctor names what is wrong, and so do the log and the health route, in the same words.

One test a way to misconfigure it: an Odoo and the doctor are started with the same wrong setting. Nobody looks at
anything but what an administrator sees: the command's output and exit status, the log, the route.

Takes 2 min.
"""
import ast
import contextlib
import datetime
import ipaddress
import itertools
import json
import os
import pty
import re
import select
import shutil
import socket
import subprocess

import pytest
import requests

from stack.clients.client import Session
from stack.clients.listeners import check_once_a_minute
from stack.faults.network import Proxy
from stack.machine import REPO
from stack.process import DEADLINE, free_port, wait_until

# a wait of the addon itself, shortened
FAST = {"IMDISPATCHER_CONNECT_TIMEOUT_SECONDS": "2"}
STATES = ["ok", "skipped", "warning", "failed"]
CHECKS = ["settings", "server-wide", "pooled address", "pooled mode", "pooler", "NOTIFY queue", "direct address",
          "direct credentials", "direct TLS", "direct server", "direct pooler", "NOTIFY", "connections"]


NAMES = itertools.count(1)


class Doctor:
    """Runs the command for an Odoo that need not run."""

    def __init__(self, odoo, options=None):
        self.odoo, self.options = odoo, options

    def start(self, *args, env=None, **kw):
        # where the command is found has to be known before it is: -c comes too late for that
        env = {"ODOO_RC": str(self.odoo.config(self.options)), **FAST, **(env or {})}
        self.secrets = {self.odoo.password, env.get("IMDISPATCHER_DB_PASSWORD", self.odoo.password)}
        return subprocess.Popen([*self.odoo.source.command, "bus_doctor", *args], env=self.odoo.env(env),
                                cwd=self.odoo.folder, stdin=subprocess.DEVNULL,
                                **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **kw})

    def end(self, process):
        try:
            out, err = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
        assert not [secret for secret in self.secrets if secret in out + err]
        assert "Traceback" not in err
        return process.returncode, out, err

    def run(self, *args, **kw):
        return self.end(self.start(*args, **kw))

    def checks(self, **kw):
        """(exit status, {name: the worst check of that name})"""
        return self.read(self.start("--json", **kw))

    def read(self, process):
        status, out, err = self.end(process)
        report = json.loads(out)
        assert report["status"] == status, err
        worst = {}
        for check in report["checks"]:
            seen = worst.setdefault(check["name"], check)
            if STATES.index(check["state"]) > STATES.index(seen["state"]):
                worst[check["name"]] = check
        # each is reported, also what could not be checked
        loaded = "queue_job" in (self.options or {}).get("server_wide_modules", "")
        assert sorted(worst) == sorted([*CHECKS, *["queue_job"] * loaded])
        return status, worst


@pytest.fixture
def doctor(stack):
    """`doctor(options)`: a Doctor for an Odoo of the stack."""
    return lambda options=None, **kw: Doctor(stack.odoo(name=f"doctor-{next(NAMES)}", **kw), options)


# -- all is well -------------------------------------------------------------------------------------------------------

def test_all_is_well(doctor, postgres, pgbouncer):
    status, checks = doctor().checks()
    assert status == 0, checks
    assert {check["state"] for check in checks.values()} == {"ok"}
    assert "transaction mode" in checks["pooled mode"]["text"]
    assert f"at 127.0.0.1 port {postgres.port}" in checks["pooled mode"]["text"]
    assert "no pooler: backend pid" in checks["direct pooler"]["text"]
    assert " ms" in checks["NOTIFY"]["text"]


def test_it_leaves_no_listen_in_the_pool(doctor, pgbouncer):
    pgbouncer.command("RECONNECT")      # whoever used the pool before may have left a LISTEN in it
    doctor({"imdispatcher_db_port": pgbouncer.port}).checks()     # both of its LISTENs take the pooler
    with contextlib.ExitStack() as open_until_the_end:
        servers = pgbouncer.show("SERVERS")
        assert servers
        for _ in servers:
            # in a transaction each, so that each holds another of the pool's connections
            connection = open_until_the_end.enter_context(contextlib.closing(pgbouncer.connect()))
            connection.autocommit = False
            cr = connection.cursor()
            cr.execute("SELECT array_agg(channel) FROM pg_listening_channels() AS channel")
            assert cr.fetchall() == [(None,)]


def test_the_address_that_postgresql_tells(doctor, postgres):
    """It is what to write down where nobody did, or where a former version found it out by itself."""
    status, checks = doctor({"imdispatcher_db_host": "auto", "imdispatcher_db_port": None}).checks()
    assert (status, checks["settings"]["state"]) == (2, "warning")
    assert "auto is no longer supported" in checks["settings"]["text"]
    assert f"at 127.0.0.1 port {postgres.port}" in checks["pooled mode"]["text"]


@pytest.mark.needs("notify_function")
def test_the_function_that_odoo_notifies_with(doctor, function):
    status, checks = doctor().checks(env={"ODOO_NOTIFY_FUNCTION": function})
    assert status == 0, checks
    assert {check["state"] for check in checks.values()} == {"ok"}
    assert "transaction mode" in checks["pooled mode"]["text"]
    # without it neither Odoo nor the doctor may NOTIFY
    status, checks = doctor().checks()
    assert (status, checks["NOTIFY"]["state"]) == (2, "failed")
    assert "permission denied for function pg_notify" in checks["NOTIFY"]["text"]


def test_its_lines(doctor):
    status, out, err = doctor().run()
    assert status == 0, out
    lines = out.splitlines()
    assert lines[-1] == "All is well."
    assert all(line.startswith("ok       ") for line in lines[:-1])
    assert "\x1b" not in out
    assert err == ""


def test_colours_on_a_terminal_only(doctor):
    terminal, inner = pty.openpty()
    try:
        process = doctor().start(stdout=inner)
        os.close(inner)
        shown = b""
        with contextlib.suppress(OSError):      # what Linux says at the end
            while b"All is well." not in shown:
                shown += os.read(terminal, 4096)
        assert process.wait(DEADLINE) == 0
    finally:
        os.close(terminal)
    assert b"\x1b[32mok" in shown


def test_odoos_own_options(doctor):
    """Given before the command, the addons path leads to it; everything else may follow it, as for the server."""
    one = doctor()
    odoo = one.odoo
    command = [*odoo.source.command, f"--addons-path={odoo.addons_path()}", "bus_doctor", "-c", str(odoo.config()),
               f"--db_port={odoo.db_port}", "--load=base,web", "--json"]
    done = subprocess.run(command, env=odoo.env(FAST), cwd=odoo.folder, stdin=subprocess.DEVNULL, text=True,
                          capture_output=True, timeout=DEADLINE)
    assert done.returncode == 2, done.stderr
    wrong, = [check for check in json.loads(done.stdout)["checks"] if check["state"] == "failed"]
    assert wrong["name"] == "server-wide"
    assert wrong["remedy"] == "Set server_wide_modules = base,web,bus_alt_connection"


def test_it_saves_nothing(doctor):
    one = doctor()
    before = one.odoo.config().read_bytes()
    status, out, err = one.run("--save")
    assert status == 2
    assert "nothing is changed" in err
    assert one.odoo.config().read_bytes() == before


# -- it works, but ... -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("env, words", [
    ({"IMDISPATCHER_HEARTBEAT_SECONDS": "never"}, "HEARTBEAT_SECONDS is 'never', which is ignored"),
    ({"IMDISPATCHER_HOST": "x"}, "IMDISPATCHER_HOST in the environment is no setting"),
], ids=["wrong", "misspelt"])
def test_a_setting_that_is_ignored(doctor, env, words):
    status, checks = doctor().checks(env=env)
    assert (status, checks["settings"]["state"]) == (1, "warning")
    assert words in checks["settings"]["text"]
    assert checks["NOTIFY"]["state"] == "ok"


def test_more_connections_than_the_pooler_lets_in(doctor, pgbouncer):
    with pgbouncer.changed(settings={"stats_users": "odoo"}):
        status, checks = doctor({"workers": 30}).checks()
        assert (status, checks["connections"]["state"]) == (1, "warning")
        assert "lets 1000 in" in checks["connections"]["text"]
        assert "max_connections" in checks["connections"]["remedy"]
        status, checks = doctor({"workers": 2}).checks()
        assert (status, checks["connections"]["state"]) == (0, "ok")


def test_settings_of_the_pooler_that_hurt(doctor, pgbouncer):
    hurt = {"server_login_retry": 15, "query_wait_timeout": 5}
    with pgbouncer.changed(settings={"stats_users": "odoo", **hurt}):
        status, checks = doctor().checks()
    assert (status, checks["pooler"]["state"]) == (1, "warning")
    for setting, value in hurt.items():
        assert f"{setting} is {value}" in checks["pooler"]["text"]
        assert re.search(rf"{setting} = \d+", checks["pooler"]["remedy"])


def test_the_pooler_is_named(doctor, pgbouncer):
    # its console may not be asked: it says so, and nobody else would in these words
    found = doctor().checks()[1]["pooler"]
    assert found["state"] == "ok" and found["text"].startswith("PgBouncer: its console may not be asked as odoo")
    with pgbouncer.changed(settings={"stats_users": "odoo"}):
        found = doctor().checks()[1]["pooler"]
    assert found["state"] == "ok" and re.match(r"PgBouncer \d+\.\d+", found["text"])
    assert doctor(pooled=False).checks()[1]["pooler"]["text"] == "none is to be seen"


def test_a_startup_parameter_that_the_pooler_refuses(doctor):
    status, checks = doctor().checks(env={"PGOPTIONS": "-c geqo=off"})
    assert (status, checks["pooled address"]["state"]) == (2, "failed")
    assert re.search("unsupported startup parameter.* (options|geqo)", checks["pooled address"]["text"])
    assert "ignore_startup_parameters in pgbouncer.ini" in checks["pooled address"]["remedy"]


class OtherVersion(Proxy):
    """Makes of what PgBouncer says of its version another of the same length."""

    def __init__(self, target, versions):
        self.versions = versions
        super().__init__(target)

    def pump(self, client, server):
        other = {client: server, server: client}
        while not self.closed:
            for side in select.select(list(other), [], [], 0.05)[0]:
                data = side.recv(65536)
                if not data:
                    return
                other[side].sendall(data.replace(*self.versions))


@pytest.mark.parametrize("version, ignored, state", [("1.24.1", "extra_float_digits", "warning"),
                                                     ("1.24.1", "extra_float_digits,options", "ok"),
                                                     ("1.24.1", "", "ok"), ("1.26.1", "extra_float_digits", "ok"),
                                                     ("1.19.9", "extra_float_digits", "ok")])
def test_versions_of_the_pooler_that_a_stranger_can_make_spin(doctor, pgbouncer, version, ignored, state):
    own = pgbouncer.show("VERSION")[0]["version"].split()[1]
    assert len(own) == len(version)
    relay = OtherVersion((pgbouncer.host, pgbouncer.port), (own.encode(), version.encode()))
    try:
        with pgbouncer.changed(settings={"stats_users": "odoo", "ignore_startup_parameters": ignored}):
            status, checks = doctor({"db_port": relay.port}).checks()
    finally:
        relay.close()
    check = checks["pooler"]
    assert (status, check["state"]) == (int(state == "warning"), state)
    assert check["text"].startswith(f"PgBouncer {version}: ")
    if state == "warning":
        assert "CVE-2026-107349" in check["text"]
        assert "1.26.1" in check["remedy"]


@pytest.mark.parametrize("own, options, pooled", [
    # two workers, a cron worker and the evented process have 64 each, and one to NOTIFY; then those of the listeners
    (4 * 65 + 3, {}, True),
    (65 + 3, {"db_name": "one", "workers": 0}, True),
    (4 * 65 + 3, {}, False),
])
def test_what_an_instance_opens(doctor, facts, own, options, pooled):
    text = doctor(options, pooled=pooled).checks()[1]["connections"]["text"]
    cron = 1 if facts.cron_listeners else 0
    assert f"opens at most {1 + cron} directly and {own + cron} through" in text


def test_one_of_two_hosts_is_away(doctor, postgres):
    hosts = {"imdispatcher_db_host": "127.0.0.1,127.0.0.1", "imdispatcher_db_port": f"{free_port()},{postgres.port}"}
    status, checks = doctor(hosts).checks()
    assert status == 1
    assert "Another host is used" in checks["direct address"]["text"]


def test_a_standby_beside_the_primary_is_well(doctor, postgres, standby):
    hosts = {"imdispatcher_db_host": "127.0.0.1,127.0.0.1", "imdispatcher_db_port": f"{standby.port},{postgres.port}"}
    assert doctor(hosts).checks()[0] == 0


def test_without_a_pooler(doctor):
    status, checks = doctor({"workers": 6}, pooled=False, direct=False).checks()
    assert "no pooler, but PostgreSQL itself" in checks["pooled mode"]["text"]
    assert checks["NOTIFY"]["state"] == "ok"
    # six workers, a cron worker and the evented process, 64 connections each, are more than the stack's 400
    assert (status, checks["connections"]["state"]) == (1, "warning")
    assert "more than 400" in checks["connections"]["text"]


NAMES_OF_ONE_HOST = """
import socket
getaddrinfo = socket.getaddrinfo
def resolve(host, *args, **kwargs):
    hosts = ["127.0.0.2", "127.0.0.1"] if host == "two.test" else [host]
    return [answer for each in hosts for answer in getaddrinfo(each, *args, **kwargs)]
socket.getaddrinfo = resolve
"""


def test_each_address_behind_a_name(doctor, postgres, tmp_path):
    """The command starts with a name server of its own, for which two.test has two addresses; the first refuses."""
    (tmp_path / "sitecustomize.py").write_text(NAMES_OF_ONE_HOST)
    one = doctor({"imdispatcher_db_host": "two.test"})
    path = os.pathsep.join(filter(None, [str(tmp_path), one.odoo.source.env.get("PYTHONPATH")]))
    status, out, err = one.run(env={"PYTHONPATH": path})
    assert status == 1, out
    assert re.search(rf"^ok .*two\.test \(127\.0\.0\.1\):{postgres.port}/\S+ as odoo answers in", out, re.M)
    assert re.search(rf"^warning .*two\.test \(127\.0\.0\.2\):{postgres.port}/.*refused.*Another host", out, re.M)


def test_a_host_of_several_that_has_no_address(doctor, postgres):
    status, checks = doctor({"imdispatcher_db_host": "nowhere.invalid,127.0.0.1"}).checks()
    assert (status, checks["direct address"]["state"]) == (1, "warning")
    assert "nowhere.invalid" in checks["direct address"]["text"]


def test_two_copies_of_the_addon(doctor, tmp_path):
    shutil.copytree(REPO / "bus_alt_connection", tmp_path / "bus_alt_connection")
    one = doctor()
    one.options = {"addons_path": one.odoo.addons_path([tmp_path])}
    status, checks = one.checks()
    assert (status, checks["server-wide"]["state"]) == (1, "warning")
    for copy in (REPO, tmp_path):
        assert str(copy / "bus_alt_connection") in checks["server-wide"]["text"]


def test_which_copy_of_the_addon_it_is(doctor):
    one = doctor()
    text = one.checks()[1]["server-wide"]["text"]
    manifest = ast.literal_eval((REPO / "bus_alt_connection/__manifest__.py").read_text())
    assert f"bus_alt_connection {manifest['version']} in {one.odoo.folder / 'addons/bus_alt_connection'}" in text


def entrypoint(config, **environ):
    """The arguments that the entrypoint of Odoo's image adds to a command: what the file does not have."""
    return [part for name, value in environ.items() if not re.search(rf"^\s*{name}\s*=", config, re.M)
            for part in (f"--{name}", str(value))]


def test_in_a_container(doctor, pgbouncer):
    """The image gives the server its host and password as arguments; a command beside the entrypoint has neither."""
    one = doctor({"db_host": None, "db_port": None, "db_user": None, "db_password": None})
    status, checks = one.checks()
    assert (status, checks["pooled address"]["state"]) == (2, "failed")
    assert "docker compose run --rm odoo odoo bus_doctor" in checks["pooled address"]["remedy"]
    assert {check["remedy"] for check in checks.values() if check["state"] == "failed"} == \
        {checks["pooled address"]["remedy"]}
    added = entrypoint(one.odoo.config(one.options).read_text(), db_host=pgbouncer.host, db_port=pgbouncer.port,
                       db_user="odoo", db_password=one.odoo.password)
    status, out, err = one.run(*added)
    assert status == 0, out


def test_what_may_hold_a_password_is_not_shown(doctor):
    env = {"IMDISPATCHER_DB_HOST": "postgres://odoo:secret-url@127.0.0.1",
           "IMDISPATCHER_DB_USER": "odoo:secret-user@host"}
    status, out, err = doctor().run(env=env)
    assert status == 2
    assert "(not shown)" in out
    assert not re.search("secret-(url|user)", out + err)


def test_a_server_that_does_not_say_how_full_the_queue_is(doctor, postgres):
    """As before PostgreSQL 9.6, which has no function for it; here it is nobody's to call."""
    postgres.query("REVOKE EXECUTE ON FUNCTION pg_notification_queue_usage() FROM PUBLIC")
    try:
        status, checks = doctor().checks()
    finally:
        postgres.query("GRANT EXECUTE ON FUNCTION pg_notification_queue_usage() TO PUBLIC")
    assert (status, checks["NOTIFY queue"]["state"]) == (0, "skipped")


def test_the_pooled_path_is_dark(doctor):
    status, checks = doctor({"db_port": free_port()}).checks()
    assert status == 2
    assert checks["pooled address"]["state"] == "failed"
    assert "check db_host, db_port" in checks["pooled address"]["remedy"]
    assert checks["NOTIFY"]["state"] == "skipped"


@pytest.fixture
def full_queue(postgres, pgbouncer):
    """PostgreSQL says to Odoo's role that the NOTIFY queue is nearly full: filling it would take 8 GB."""
    postgres.query("CREATE SCHEMA full_queue")
    postgres.query("CREATE FUNCTION full_queue.pg_notification_queue_usage() RETURNS float8 LANGUAGE sql"
                   " AS 'SELECT 0.875::float8'")
    postgres.query("GRANT USAGE ON SCHEMA full_queue TO odoo")
    postgres.query("ALTER ROLE odoo SET search_path = full_queue, pg_catalog, public")
    pgbouncer.command("RECONNECT")
    yield
    postgres.query("ALTER ROLE odoo RESET search_path")
    postgres.query("DROP SCHEMA full_queue CASCADE")
    pgbouncer.command("RECONNECT")


def test_who_holds_up_the_queue(doctor, postgres, full_queue):
    holder = postgres.connect(user="odoo", application_name="a forgotten session")
    holder.autocommit = False
    try:
        cr = holder.cursor()
        cr.execute("LISTEN something")
        holder.commit()
        cr.execute("SELECT 1")
        pid = holder.get_backend_pid()
        status, checks = doctor().checks()
        check = checks["NOTIFY queue"]
        assert (status, check["state"]) == (2, "failed")
        assert f"88 % full; pid {pid} (a forgotten session, as odoo) is idle in transaction for " in check["text"]
        assert "snapshot" not in check["text"]      # between two statements it has none, unless it is as below
        ends, = re.findall(r"SELECT pg_terminate_backend\(\d+\);", check["remedy"])
        postgres.query(ends)
        wait_until(lambda: not postgres.query("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]), DEADLINE,
                   "the statement does not end it")
    finally:
        holder.close()
    check = doctor().checks()[1]["NOTIFY queue"]
    assert check["text"].startswith("88 % full; when it is full")
    assert "superuser" in check["remedy"]


def test_how_old_the_snapshot_is_of_who_holds_up_the_queue(doctor, postgres, full_queue):
    with contextlib.closing(postgres.connect(user="odoo")) as holder:
        holder.set_session(isolation_level="REPEATABLE READ", autocommit=False)
        holder.cursor().execute("SELECT 1")
        for _ in range(3):
            postgres.query("SELECT txid_current()")
        text = doctor().checks()[1]["NOTIFY queue"]["text"]
        pid = holder.get_backend_pid()
    found = re.search(rf"pid {pid} .* for \d+ s \(age of its oldest snapshot: (\d+) transactions\)", text)
    assert found and int(found[1]) >= 3, text


# -- queue_job ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def runner(doctor, facts, queue_job):
    """A Doctor of an Odoo that loads queue_job: `runner(options)`."""
    def make(options=None):
        one = doctor()
        one.options = {"server_wide_modules": f"{facts.server_wide},bus_alt_connection,queue_job", "db_name": "demo",
                       "addons_path": one.odoo.addons_path([queue_job]), **(options or {})}
        return one
    return make


def test_the_runner_of_queue_job_goes_past_the_pooler(runner, postgres):
    status, checks = runner().checks()
    assert (status, checks["queue_job"]["state"]) == (0, "ok"), checks
    assert f"connects to 127.0.0.1:{postgres.port}/demo as odoo, no pooler" in checks["queue_job"]["text"]
    # it needs Odoo's tables, and so Odoo's role; and the databases that nobody names are those of that role
    status, checks = runner({"db_name": None, "imdispatcher_db_user": "somebody"}).checks()
    assert (status, checks["queue_job"]["state"]) == (2, "ok"), checks
    assert re.search(rf"connects to 127.0.0.1:{postgres.port}/\w+ as odoo, no pooler", checks["queue_job"]["text"])


@pytest.mark.newest
def test_the_runner_of_queue_job_has_the_password_of_odoos_role(runner):
    status, checks = runner({"imdispatcher_db_password": "another"}).checks()
    assert (status, checks["queue_job"]["state"]) == (2, "failed")
    assert "its runner cannot connect to" in checks["queue_job"]["text"]
    assert "imdispatcher_db_password" in checks["queue_job"]["remedy"]


@pytest.mark.parametrize("where", [pytest.param("turned off", marks=pytest.mark.newest), "odoo.conf"])
def test_a_runner_of_queue_job_that_goes_through_the_pooler(runner, pgbouncer, where):
    one = runner({"imdispatcher_queue_job": "false"} if where == "turned off" else None)
    env = {}
    if where == "odoo.conf":
        whole = one.odoo.folder / "whole.conf"
        whole.write_text(f"{one.odoo.config(one.options).read_text()}"
                         f"[queue_job]\njobrunner_db_host = 127.0.0.1\njobrunner_db_port = {pgbouncer.port}\n")
        env["ODOO_RC"] = str(whole)
    status, checks = one.checks(env=env)
    assert (status, checks["queue_job"]["state"]) == (2, "failed")
    assert f":{pgbouncer.port}/demo as odoo, a pooler in transaction mode" in checks["queue_job"]["text"]
    assert "to PostgreSQL itself" in checks["queue_job"]["remedy"]


# -- TLS ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode, checked", [("verify-ca", "checked"), ("require", "not checked")])
def test_whether_the_certificate_is_checked(doctor, encrypted, mode, checked):
    # not verify-full: libpq before 15 does not find an IP address in a certificate
    env = {"IMDISPATCHER_DB_SSLMODE": mode, **at(encrypted)}
    if checked == "checked":
        env["IMDISPATCHER_DB_SSLROOTCERT"] = str(encrypted.folder / "server.crt")
    check = doctor().checks(env=env)[1]["direct TLS"]
    assert check["state"] == "ok"
    assert re.fullmatch(rf"TLS\S+, certificate {checked} \(sslmode is {mode}\)", check["text"])


def certificate(server):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "doctor.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=365))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(server.host))]), False)
            .add_extension(x509.BasicConstraints(True, None), True)
            .sign(key, hashes.SHA256()))
    for path, content in ((server.folder / "server.crt", made.public_bytes(serialization.Encoding.PEM)),
                          (server.folder / "server.key", key.private_bytes(
                              serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                              serialization.NoEncryption()))):
        path.touch(0o600)
        path.write_bytes(content)
        path.chmod(0o644 if path.suffix == ".crt" else 0o600)
        if server.run_as:
            os.chown(path, *server.run_as)


# -- it is broken ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def encrypted(other):
    """A cluster that offers TLS."""
    certificate(other)
    other.stop()
    return other.start(ssl="on", ssl_cert_file=other.folder / "server.crt", ssl_key_file=other.folder / "server.key")


@pytest.fixture(scope="module")
def barred(postgres):
    """A role that pg_hba.conf lets in nowhere."""
    postgres.query("CREATE ROLE doctor_barred LOGIN PASSWORD 'secret-barred'")
    hba = postgres.data / "pg_hba.conf"
    shipped = hba.read_text()
    hba.write_text("host all doctor_barred all reject\n" + shipped)
    postgres.query("SELECT pg_reload_conf()")
    yield "doctor_barred"
    hba.write_text(shipped)
    postgres.query("SELECT pg_reload_conf()")
    postgres.query("DROP ROLE doctor_barred")


@pytest.fixture(scope="module")
def full(postgres):
    """A role for which the server has no connection left."""
    postgres.query("CREATE ROLE doctor_full LOGIN PASSWORD 'secret-full' CONNECTION LIMIT 0")
    yield "doctor_full"
    postgres.query("DROP ROLE doctor_full")


@pytest.fixture(scope="module")
def black_hole():
    """A port where connections are taken and nobody ever answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        yield listening.getsockname()[1]


def at(server):
    return {"IMDISPATCHER_DB_PORT": str(server.port), "IMDISPATCHER_DB_PASSWORD": server.odoo_password}


# what is wrong: the environment that makes it so, the check that finds it, the name of the cause, words of the remedy
WRONG = {
    "password": (lambda get: {"IMDISPATCHER_DB_PASSWORD": "secret-wrong"},
                 "direct credentials", "credentials", "imdispatcher_db_user and imdispatcher_db_password"),
    "role": (lambda get: {"IMDISPATCHER_DB_USER": get("full"), "IMDISPATCHER_DB_PASSWORD": "secret-full"},
             "connections", "full", "is full: raise its max_connections"),
    "pg_hba": (lambda get: {"IMDISPATCHER_DB_USER": get("barred"), "IMDISPATCHER_DB_PASSWORD": "secret-barred"},
               "direct credentials", "pg_hba", "to the server's pg_hba.conf"),
    "no such database": (lambda get: {"IMDISPATCHER_DB_NAME": "nowhere"},
                         "direct server", "database", "Set imdispatcher_db_name"),
    "TLS refused": (lambda get: {"IMDISPATCHER_DB_SSLMODE": "require"},
                    "direct TLS", "tls", "Set imdispatcher_db_sslmode"),
    "standby": (lambda get: {"IMDISPATCHER_DB_PORT": str(get("standby").port)},
                "direct server", "standby", "to the primary, or name all hosts"),
    "another server": (lambda get: at(get("other")),
                       "direct server", "other server", "to the server behind Odoo's own db_host"),
    "another database": (lambda get: {"IMDISPATCHER_DB_NAME": "template1"},
                         "direct server", "other database", "Set imdispatcher_db_name to the database"),
    "pooler": (lambda get: {"IMDISPATCHER_DB_PORT": str(get("pgbouncer").port)},
               "direct pooler", "pooler", "to PostgreSQL itself"),
    "refused": (lambda get: {"IMDISPATCHER_DB_PORT": str(free_port())},
                "direct address", "unreachable", "is PostgreSQL up"),
    "black hole": (lambda get: {"IMDISPATCHER_DB_PORT": str(get("black_hole"))},
                   "direct address", "unreachable", "does a firewall"),
    "misspelt TLS": (lambda get: {"IMDISPATCHER_DB_SSLMODE": "verify_full"},
                     "direct address", "setting", "Correct the setting."),
    "no password file": (lambda get: {"IMDISPATCHER_DB_PASSWORD_FILE": "/nowhere/password"},
                         "direct address", "password file", "Set imdispatcher_db_password_file"),
    "no root certificate": (lambda get: {"IMDISPATCHER_DB_SSLROOTCERT": "/nowhere/ca.crt"},
                            "direct address", "setting", "Correct the setting."),
    "unknown host": (lambda get: {"IMDISPATCHER_DB_HOST": "nowhere.invalid"},
                     "direct address", "name", "that this machine can resolve"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_doctor_the_log_and_the_route_agree(wrong, request, odoo, doctor):
    make, name, cause, words = WRONG[wrong]
    env = {**FAST, **make(request.getfixturevalue)}
    one = doctor()
    process = one.start("--json", env=env)
    server = odoo(env=env, options={"max_cron_threads": 0})
    status, checks = one.read(process)

    assert status == 2
    check = checks[name]
    assert check["state"] == "failed"
    assert words in check["remedy"]
    assert checks["NOTIFY"]["state"] in ("failed", "skipped")
    # no other reason is named
    assert {check["remedy"] for check in checks.values() if check["state"] == "failed"} == {check["remedy"]}

    route = server.url + "/bus_alt_connection/health"
    client = Session(server, "demo").subscribe(["doctor"])     # the listener starts with the first client
    try:
        wait_until(lambda: requests.get(route, timeout=DEADLINE).json().get("cause") == cause, DEADLINE,
                   lambda: f"the route says {requests.get(route, timeout=DEADLINE).json()}")
    finally:
        client.close()
    answer = requests.get(route, timeout=DEADLINE)
    assert answer.status_code == 503
    said = answer.json()
    assert said.pop("state") in ("connecting", "verifying")
    assert said == {"status": "fail", "cause": cause, "remedy": check["remedy"]}
    said = check_once_a_minute(re.escape(check["remedy"]), server.log_text())
    assert "The bus listener" in said[0]
