"""Patroni on two PostgreSQL servers, etcd beside them and HAProxy in front, configured as docs/failover.rst has it.

    with Stack() as stack:
        stack.database("demo")
        with Cluster(stack) as cluster:
            cluster.switchover()

Contract: Patroni adopts the PostgreSQL of the stack as pg1 and makes pg2 from it; PgBouncer is pointed to HAProxy. When
`with` begins its block one is the primary, the other streams from it, and HAProxy knows. Of the shown configurations
nothing is changed but addresses, paths and passwords, and what a private PostgreSQL needs. Debian's packages are
unpacked into the cache and nothing is installed.

pg1 is on an Island where this machine can have one: `cluster.island.drop()` cuts it off from everything else.
"""
import contextlib
import http.client
import json
import os
import secrets
import signal
from pathlib import Path

from ..base import run
from ..download.programs import patroni
from ..faults.network import Island
from ..machine import StackError
from ..process import DEADLINE, Program, children, free_port, wait_until
from ..recipes import block, changed
from .haproxy import HAProxy
from .postgres import SUPERUSER, Postgres

REPLICATION_USER = "replicator"


class Etcd(Program):
    """One etcd; a deployment has three."""

    def __init__(self, program, env, folder, host):
        self.program, self.env = program, env
        self.folder, self.host = Path(folder), host
        self.port, self.peer_port = free_port(), free_port()
        self.folder.mkdir()
        super().__init__("etcd", self.folder / "etcd.log")

    def start(self, timeout=DEADLINE):
        url, peer = f"http://{self.host}:{self.port}", f"http://{self.host}:{self.peer_port}"
        self.launch([self.program, "--name=etcd", f"--data-dir={self.folder / 'data'}",
                     f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
                     f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
                     f"--initial-cluster=etcd={peer}"], self.env, self.folder)
        wait_until(self.healthy, timeout, lambda: f"etcd does not answer: {self.last_lines()}")
        return self

    def healthy(self):
        if not self.running:
            raise StackError(f"etcd ended at its start: {self.last_lines()}")
        return ask(self.host, self.port, "GET", "/health")[0] == 200


class Member(Postgres):
    """A PostgreSQL that Patroni starts and stops: the program is Patroni."""

    def __init__(self, machine, folder, name, host="127.0.0.1", island=None):
        super().__init__(machine, folder)
        self.name = f"Patroni of {name}"
        self.member, self.host, self.island = name, host, island
        self.rest_port = free_port()
        self.config = self.folder / "patroni.yml"

    def configure(self, etcd, replication_password):
        """Write patroni.yml, as it is shown."""
        text = changed(block("failover-patroni"), {
            "name: pg1": f"name: {self.member}",
            "etcd.example:2379": f"{etcd.host}:{etcd.port}",
            "listen: 0.0.0.0:8008": f"listen: {self.host}:{self.rest_port}",
            "pg1.example:8008": f"{self.host}:{self.rest_port}",
            "listen: 0.0.0.0:5432": f"listen: {self.host}:{self.port}",
            "pg1.example:5432": f"{self.host}:{self.port}",
            "192.0.2.0/24": "0.0.0.0/0",
            "password of postgres": self.passwords[SUPERUSER], "password of replicator": replication_password,
            # for the measurement: when a notification was committed
            "max_connections: 200": "max_connections: 200\n        track_commit_timestamp: 'on'",
            "/var/lib/postgresql/15/main":
                f"{self.data}\n  parameters:\n    unix_socket_directories: {self.socket_dir}",
            "/usr/lib/postgresql/15/bin": str(self.machine.pg_bin),
        })
        with open(os.open(self.config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text + "\n")
        if self.run_as:
            os.chown(self.config, *self.run_as)

    def start(self):
        """Start Patroni, which starts PostgreSQL; Cluster.wait_whole tells when."""
        command, _, more = patroni(self.machine.cache)
        env = {name: value for name, value in self.env().items() if not name.startswith(("PATRONI_", "PYTHON"))}
        env.update(joined(self.machine.env, more), HOME=str(self.folder))       # it writes a file with passwords there
        inside = self.island.inside if self.island else lambda function: function()
        inside(lambda: self.launch([*command, self.config], env, self.folder))
        return self

    def answers(self, role):
        """Whether Patroni says that this is a "primary", or a "replica"."""
        return ask(self.host, self.rest_port, "GET", f"/{role}")[0] == 200

    def servers_pids(self):
        """The processes of PostgreSQL; none of those of another one that has got an old number."""
        try:
            postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
            if Path(f"/proc/{postmaster}/cwd").readlink() != self.data.resolve():
                return []
        except (OSError, ValueError, IndexError):
            return []
        return [postmaster, *children(postmaster)]

    def freeze(self):
        for pid in [self.pid, *self.servers_pids()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def end_by_force(self):
        super().end_by_force()      # Patroni first: it would start PostgreSQL again
        for pid in self.servers_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.servers_pids(), DEADLINE, "PostgreSQL does not end")


class Cluster:
    def __init__(self, stack):
        self.stack = stack
        self.exits = contextlib.ExitStack()

    def __enter__(self):
        stack, machine = self.stack, self.stack.machine
        _, etcd, env = patroni(machine.cache)
        with self.exits:
            self.island = None if Island.why_not() else self.exits.enter_context(Island())
            ours, other = (self.island.ours, self.island.address) if self.island else ("127.0.0.1", "127.0.0.1")
            self.etcd = self.add(Etcd(etcd, {**os.environ, **joined(machine.env, env)}, stack.folder / "etcd", ours))
            self.etcd.start()
            self.members = [self.add(Member(machine, stack.folder / "pg1", "pg1", other, self.island)),
                            self.add(Member(machine, stack.folder / "pg2", "pg2", ours))]
            self.adopt(stack.postgres)
            port = free_port()
            words = {f"{each.member}.example:5432 check port 8008":
                     f"{each.host}:{each.port} check port {each.rest_port}" for each in self.members}
            text = changed(block("failover-haproxy"), {"bind *:5000": f"bind 127.0.0.1:{port}", **words}) + "\n"
            self.proxy = self.add(HAProxy(machine, stack.folder / "haproxy", port, text)).start()
            self.wait_whole()
            self.point(self.proxy)
            self.exits = self.exits.pop_all()
        return self

    def __exit__(self, *exc):
        self.exits.close()

    def add(self, program):
        self.exits.callback(program.end_by_force)
        return self.stack.add(program)

    def adopt(self, postgres):
        """Have Patroni serve the data of a PostgreSQL of its own, and make a standby of it."""
        password = secrets.token_urlsafe(18)
        postgres.query(f"CREATE ROLE {REPLICATION_USER} REPLICATION LOGIN PASSWORD %s", [password])
        postgres.stop()
        first, second = self.members
        first.data = postgres.data
        for member in self.members:
            member.passwords = dict(postgres.passwords)
            member.configure(self.etcd, password)
        first.start()
        wait_until(lambda: first.answers("primary"), DEADLINE, lambda: f"no primary: {first.last_lines()}")
        second.start()

    def point(self, target):
        """Have PgBouncer, as it is shown, lead to this: HAProxy, or a member."""
        self.stack.pgbouncer.target = (target.host, target.port)
        self.stack.pgbouncer.renew()

    def primary(self):
        """The member that Patroni says is the primary, None while there is none."""
        return next((member for member in self.members if member.running and member.answers("primary")), None)

    def other(self, member):
        return self.members[1 - self.members.index(member)]

    def whole(self):
        """Whether one is the primary, the other streams from it, and HAProxy knows."""
        import psycopg2
        primary = self.primary()
        if not primary or not self.other(primary).answers("replica"):
            return False
        wanted = {each.member: "UP" if each is primary else "DOWN" for each in self.members}
        try:
            streams = primary.query("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'")
        except psycopg2.Error:
            return False
        return bool(streams) and self.proxy.states("primary") == wanted

    def wait_whole(self, timeout=2 * DEADLINE):
        wait_until(self.whole, timeout, lambda: "no primary with a standby: " + "; ".join(
            member.last_lines() for member in self.members))

    def switchover(self):
        """As `patronictl switchover` does; returns when Patroni says that it is done."""
        leader = self.primary()
        wanted = {"leader": leader.member, "candidate": self.other(leader).member}
        status, text = ask(leader.host, leader.rest_port, "POST", "/switchover", wanted, DEADLINE)
        if status != 200:
            raise StackError(f"Patroni does not switch over: {status} {text}")

    def versions(self):
        """{name: version}"""
        command, etcd, more = patroni(self.stack.machine.cache)
        env = {**os.environ, **more}
        return {"Patroni": run([*command, "--version"], "Patroni does not run", env=env).split()[-1],
                "etcd": run([etcd, "--version"], "etcd does not run", env=env).split()[2],
                "HAProxy": run([self.proxy.program, "-v"], "HAProxy does not run", env=self.proxy.env).split()[2]}


def ask(host, port, method, path, body=None, timeout=2):
    """(status, text) of an answer; (None, "") if there is none."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request(method, path, body and json.dumps(body))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return None, ""
    finally:
        connection.close()


def joined(*environments):
    """Of several folders of unpacked programs: the libraries of all of them."""
    paths = [each["LD_LIBRARY_PATH"] for each in environments if each.get("LD_LIBRARY_PATH")]
    merged = {name: value for each in environments for name, value in each.items()}
    return {**merged, "LD_LIBRARY_PATH": ":".join(paths)}
