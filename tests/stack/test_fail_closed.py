"""A setting that is wrong means no direct connection and polling, never a connection with less than what was asked for.

The direct address leads to a proxy that counts who comes.
"""
import shutil
import subprocess

import pytest

from stack.clients.flow import Flow
from stack.clients.listeners import wait_listening
from stack.clients.state import DEGRADED, instant, lines, pass_seconds, wait_failing
from stack.faults.network import Proxy

newest = pytest.mark.newest


class Case:
    """A server whose listener has such settings: nobody comes to `target`, and all the same messages arrive."""

    def __init__(self, stack, odoo, target, workers, **settings):
        self.stack, self.target = stack, target
        self.proxy = Proxy((target.host, target.port))
        settings = {"db_host": self.proxy.host, "db_port": self.proxy.port, **settings}
        env = {f"IMDISPATCHER_{name.upper()}": str(value) for name, value in settings.items()}
        self.server = odoo(workers=workers, env=env, options={"max_cron_threads": 0})

    def polls(self, flow):
        """It is polled, the health route says so, and not one connection was tried."""
        wait_failing(self.server)
        pass_seconds(DEGRADED)      # retries, if there were any
        assert not self.proxy.accepted, "a direct connection was opened"
        assert flow.slowest() < DEGRADED
        errors = [line for line in lines(self.server, "") if " ERROR " in line]
        # at the start each process says it, later the listener: nobody twice
        speakers = [tuple(line.split()[index] for index in (2, 5)) for line in errors]
        assert len(speakers) == len(set(speakers)), errors
        assert "Traceback" not in self.server.log_text()
        said, = [line for line in errors if "The bus listener " in line]
        return said

    def listens(self, flow):
        """It came by itself."""
        wait_listening(self.target, self.server, "bus")
        instant(flow)


@pytest.fixture
def case(stack, odoo):
    opened = []

    def case(workers=0, target=None, **settings):
        opened.append(Case(stack, odoo, target or stack.postgres, workers, **settings))
        return opened[-1]
    yield case
    for one in opened:
        one.proxy.close()


@pytest.fixture
def flow(stack):
    opened = []

    def flow(case):
        opened.append(Flow(case.server, stack.pgbouncer, stack.postgres, every=1.0))
        return opened[-1].__enter__()
    yield flow
    for one in opened:
        one.__exit__()


@pytest.mark.parametrize("value", [
    "verify_full", pytest.param("required", marks=newest), pytest.param("TRUE", marks=newest)])
def test_sslmode(case, flow, value):
    one = case(db_sslmode=value)
    running = flow(one)
    line = one.polls(running)
    assert "SSLMODE" in line.upper() and value in line and "verify-full" in line
    running.check()


@pytest.fixture(scope="module")
def encrypted(stack, tmp_path_factory):
    """The stack's server, with TLS, and the certificate that vouches for it: (server, path)."""
    if not shutil.which("openssl"):
        pytest.skip("certificates need the program openssl")
    postgres = stack.postgres
    key, certificate = (postgres.folder / name for name in ("tls.key", "tls.crt"))
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True)
    if postgres.run_as:
        for path in (key, certificate):
            shutil.chown(path, *postgres.run_as)
    key.chmod(0o600)
    for name, value in (("ssl_cert_file", certificate), ("ssl_key_file", key), ("ssl", "on")):
        postgres.query(f"ALTER SYSTEM SET {name} = '{value}'")
    postgres.query("SELECT pg_reload_conf()")
    yield postgres, certificate
    postgres.query("ALTER SYSTEM RESET ALL")
    postgres.query("SELECT pg_reload_conf()")


@pytest.mark.parametrize("sslmode, workers", [
    ("require", 0), pytest.param("verify-ca", 2, marks=newest), pytest.param("verify-full", 0, marks=newest)])
def test_root_certificate(case, flow, encrypted, tmp_path, sslmode, workers):
    """One that is mounted later is found. Without its file libpq would check nothing where `require` is asked."""
    target, certificate = encrypted
    root = tmp_path / "root.crt"
    one = case(workers, target, db_sslmode=sslmode, db_sslrootcert=root)
    running = flow(one)
    line = one.polls(running)
    assert "SSLROOTCERT" in line.upper() and str(root) in line
    shutil.copyfile(certificate, root)
    one.listens(running)
    running.check()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=newest)], ids=["threaded", "prefork"])
def test_password_file(case, flow, postgres, tmp_path, workers):
    """Odoo's own password is not sent to the role that another one is asked for."""
    secret = tmp_path / "secret"
    postgres.query("CREATE ROLE direct LOGIN PASSWORD 'mounted later'")
    try:
        one = case(workers, db_user="direct", db_password_file=secret)
        running = flow(one)
        line = one.polls(running)
        assert "password file" in line.lower() or "PASSWORD_FILE" in line.upper()
        assert str(secret) in line
        secret.write_text("mounted later\n")
        one.listens(running)
        running.check()
        one.server.kill()
    finally:
        postgres.query("DROP ROLE direct")


def test_password_file_that_goes_and_comes(case, flow, postgres, tmp_path):
    """What stood in it once is not used again, and what it holds at each try is."""
    secret = tmp_path / "secret"
    secret.write_text("first")
    postgres.query("CREATE ROLE direct LOGIN PASSWORD 'first'")
    try:
        one = case(db_user="direct", db_password_file=secret)
        running = flow(one)
        pid, = wait_listening(postgres, one.server, "bus")
        secret.unlink()
        accepted = one.proxy.accepted
        postgres.query("ALTER ROLE direct PASSWORD 'second'")
        postgres.query("SELECT pg_terminate_backend(%s)", [pid])
        wait_failing(one.server)
        pass_seconds(DEGRADED)
        assert one.proxy.accepted == accepted
        secret.write_text("second")
        one.listens(running)
        running.check()
        one.server.kill()
    finally:
        postgres.query("DROP ROLE direct")
