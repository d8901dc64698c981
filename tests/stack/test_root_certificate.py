"""A root certificate alone asks for all that it can vouch for: the server's certificate and its name, or no connection.

Whoever answers in the server's place is sent nothing but the request for TLS.
"""
import shutil
import socket
import struct
import subprocess

import pytest

from stack.clients.flow import Flow
from stack.clients.listeners import direct, wait_listening
from stack.clients.state import DEGRADED, instant, lines, pass_seconds, wait_failing
from stack.faults.network import Proxy

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
TRIED = 20          # seconds
newest = pytest.mark.newest


def certificate(folder, name):
    """A key, and a certificate that vouches for itself, of the address 127.0.0.1."""
    key, crt = folder / f"{name}.key", folder / f"{name}.crt"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", crt],
                   check=True, capture_output=True)
    return key, crt


@pytest.fixture(scope="module")
def certificates(stack, tmp_path_factory):
    """PostgreSQL has TLS: the certificate that vouches for it, and one that does not."""
    if not shutil.which("openssl"):
        pytest.skip("certificates need the program openssl")
    postgres = stack.postgres
    own = certificate(postgres.folder, "server")
    if postgres.run_as:
        for path in own:
            shutil.chown(path, *postgres.run_as)
    own[0].chmod(0o600)
    folder = tmp_path_factory.mktemp("certificates")
    right = folder / "right.crt"
    shutil.copyfile(own[1], right)
    for name, value in (("ssl_cert_file", own[1]), ("ssl_key_file", own[0]), ("ssl", "on")):
        postgres.query(f"ALTER SYSTEM SET {name} = '{value}'")
    postgres.query("SELECT pg_reload_conf()")
    yield right, certificate(folder, "wrong")[1]
    postgres.query("ALTER SYSTEM RESET ALL")
    postgres.query("SELECT pg_reload_conf()")


class Seen(Proxy):
    """Forwards, and keeps what each client sent first after it was refused TLS, if it was, or at once."""

    def __init__(self, target, has_tls=True):
        self.has_tls = has_tls
        self.in_clear = []
        super().__init__(target)

    def forward(self, client):
        first = client.recv(8, socket.MSG_PEEK | socket.MSG_WAITALL)
        if first == SSL_REQUEST and not self.has_tls:
            client.recv(8)
            client.sendall(b"N")
            first = client.recv(8, socket.MSG_PEEK)
        if first and first != SSL_REQUEST:
            self.in_clear.append(first)
        super().forward(client)


@pytest.fixture
def seen(stack):
    opened = []

    def seen(**kw):
        opened.append(Seen((stack.postgres.host, stack.postgres.port), **kw))
        return opened[-1]
    yield seen
    for one in opened:
        one.close()


def serve(odoo, way, **settings):
    settings = {"db_host": way.host, "db_port": way.port, **settings}
    return odoo(env={f"IMDISPATCHER_{name.upper()}": str(value) for name, value in settings.items()},
                options={"max_cron_threads": 0})


@pytest.mark.parametrize("who, settings", [
    ("another certificate", {}), ("no TLS", {}), ("the wrong name", {}),
    pytest.param("another certificate", {"db_sslmode": "require"}, marks=newest)])
def test_an_impostor(stack, odoo, postgres, certificates, seen, who, settings):
    right, wrong = certificates
    way = seen(has_tls=who != "no TLS")
    server = serve(odoo, way, db_sslrootcert=wrong if who == "another certificate" else right,
                   **({"db_host": "localhost"} if who == "the wrong name" else {}), **settings)
    with Flow(server, stack.pgbouncer, postgres, every=1.0) as flow:
        wait_failing(server)
        server.wait_log("(WARNING|ERROR) .*bus listener")
        pass_seconds(TRIED)
        assert way.accepted, "nobody tries"
        assert not way.in_clear, f"somebody logs in without TLS: {len(way.in_clear)} times"
        assert not direct(postgres, server)
        assert flow.slowest() < DEGRADED
        flow.check()


@pytest.mark.parametrize("mode", [None, pytest.param("verify-full", marks=newest),
                                  pytest.param("verify-ca", marks=newest)])
def test_the_right_server(stack, odoo, postgres, certificates, seen, mode):
    way = seen()
    server = serve(odoo, way, db_sslrootcert=certificates[0], **({"db_sslmode": mode} if mode else {}))
    with Flow(server, stack.pgbouncer, postgres) as flow:
        pid, = wait_listening(postgres, server, "bus")
        assert postgres.query("SELECT ssl FROM pg_stat_ssl WHERE pid = %s", [pid]) == [(True,)]
        assert not way.in_clear
        instant(flow)
        flow.check()


@pytest.mark.parametrize("mode", ["disable", "prefer", pytest.param("allow", marks=newest)])
def test_a_mode_that_contradicts_it(stack, odoo, postgres, certificates, seen, mode):
    """Each of them would do without the certificate: nobody is connected to, and the line names both settings."""
    way = seen()
    server = serve(odoo, way, db_sslrootcert=certificates[0], db_sslmode=mode)
    with Flow(server, stack.pgbouncer, postgres, every=1.0) as flow:
        wait_failing(server)
        server.wait_log("ERROR .*bus listener")
        pass_seconds(DEGRADED)
        assert not way.accepted, "a direct connection was opened"
        said = [line for line in lines(server, "") if " ERROR " in line]
        assert any("SSLMODE" in line.upper() and "SSLROOTCERT" in line.upper() for line in said), said
        assert flow.slowest() < DEGRADED
        flow.check()


def test_the_proxy_sees(stack, seen):
    """What the other tests rely on."""
    way = seen(has_tls=False)
    stack.postgres.connect(host=way.host, port=way.port).close()
    assert way.in_clear
