"""What all poolers share, and private ones of other kinds than PgBouncer, each configured to carry Odoo.

Contract: `start` returns when the pooler carries a query of Odoo's role to PostgreSQL. The programs are those of a
Debian release, see releases.py.
"""
import os
import signal
import socket
from pathlib import Path

from ..base import run
from ..faults.network import Proxy
from ..machine import StackError
from ..process import DEADLINE, Program, free_port, wait_until
from .postgres import ODOO_USER, SUPERUSER, connect

CONNECTIONS = 60        # to PostgreSQL, for all databases and roles


class Pooler(Program):
    host = "127.0.0.1"
    title = program = ""    # what it is called; its program in the folder of its package

    def __init__(self, machine, folder, postgres, port=None):
        self.machine = machine
        self.folder = Path(folder)
        self.port = port or free_port()
        self.target = (postgres.host, postgres.port)
        self.passwords = dict(postgres.passwords)
        self.folder.mkdir(parents=True, exist_ok=True)
        super().__init__(self.title, self.folder / f"{self.title.lower()}.log", machine.run_as)
        self.own(self.folder)

    def own(self, path):
        if self.run_as:
            os.chown(path, *self.run_as)

    def write(self, name, text):
        """A file of the pooler's folder that the pooler alone can read."""
        path = self.folder / name
        path.touch(0o600)
        path.write_text(text)
        self.own(path)
        return path

    def accepts(self):
        import psycopg2  # as in postgres.connect
        if not self.running:
            raise StackError(f"{self.name} ended at its start: {self.last_lines()}")
        try:
            self.answer()
        except psycopg2.Error:
            return False
        return True

    def stop(self, timeout=10):
        # an admin's restart: of PgBouncer SIGINT would wait for transactions to end
        return self.end(signal.SIGTERM, timeout)

    def restart(self):
        self.stop()
        return self.start()

    def kill(self):
        self.end_by_force()

    def connect(self, dbname="postgres", user=ODOO_USER, **kw):
        return connect(**{"host": self.host, "port": self.port, "dbname": dbname, "user": user,
                          "password": self.passwords[user], **kw})


class Other(Pooler):
    """A pooler of another kind, from the folder of its package, for one database of Odoo's."""
    prefilled = False       # whether the database has to be there when it starts

    def __init__(self, machine, folder, postgres, package, database):
        super().__init__(machine, folder, postgres)
        self.package, self.database = package, database
        self.env = {**os.environ, "HOME": str(self.folder), "LC_ALL": "C"}

    def start(self, timeout=DEADLINE):
        self.launch(self.command(), self.env, self.folder)
        wait_until(self.accepts, timeout, lambda: f"{self.name} does not answer: {self.last_lines()}")
        return self

    def answer(self):
        """One round trip."""
        connection = self.connect()
        try:
            connection.cursor().execute("SELECT 1")
        finally:
            connection.close()


class Odyssey(Other):
    title, program = "Odyssey", "usr/bin/odyssey"

    def command(self):
        users = "".join(f"""
    user "{name}" {{
        authentication "scram-sha-256"
        password "{password}"
        storage "server"
        storage_user "{name}"
        storage_password "{password}"
        pool "transaction"
        pool_size {CONNECTIONS}
    }}""" for name, password in self.passwords.items())
        return [self.package / self.program, self.write("odyssey.conf", f"""daemonize no
log_to_stdout yes
log_format "%p %t %l [%i %s] (%c) %m\\n"
unix_socket_dir "{self.folder}"
unix_socket_mode "0600"
listen {{
    host "{self.host}"
    port {self.port}
}}
storage "server" {{
    type "remote"
    host "{self.target[0]}"
    port {self.target[1]}
}}
database default {{{users}
}}
""")]


class Pgagroal(Other):
    title, program, prefilled = "pgagroal", "usr/bin/pgagroal", True

    def __init__(self, *args):
        super().__init__(*args)
        # it aborts where PostgreSQL's port has five digits, as one that the kernel chooses has
        self.short = Proxy(self.target, listener=short_port())
        self.target = self.short.host, self.short.port

    def command(self):
        users = self.folder / "pgagroal_users.conf"
        if not users.exists():
            self.admin("master-key", PGAGROAL_PASSWORD="Master.key.of.the.tests.1")
            for name in (ODOO_USER, SUPERUSER):
                self.admin("-f", users, "-U", name, "-P", self.passwords[name], "user", "add")
        hba = self.write("pgagroal_hba.conf", "host all all all scram-sha-256\n")
        # by transactions it pools the databases that are there when it starts, and are named here
        limits = self.write("pgagroal_databases.conf", "".join(
            f"{database} {ODOO_USER} {CONNECTIONS // 2} 2 1\n" for database in ("postgres", self.database)))
        config = self.write("pgagroal.conf", f"""[pgagroal]
host = {self.host}
port = {self.port}
log_type = console
log_level = info
max_connections = {CONNECTIONS}
idle_timeout = 0
validation = off
unix_socket_dir = {self.folder}
pipeline = transaction
allow_unknown_users = off

[primary]
host = {self.target[0]}
port = {self.target[1]}
""")
        return [self.package / self.program, "-c", config, "-a", hba, "-u", users, "-l", limits]

    def admin(self, *args, **env):
        user = {"user": self.run_as[0], "group": self.run_as[1], "extra_groups": []} if self.run_as else {}
        run([self.package / "usr/bin/pgagroal-admin", *args], "pgagroal-admin failed", env={**self.env, **env},
            cwd=self.folder, **user)


def short_port():
    """A socket that listens on a free port of four digits."""
    for port in range(6433, 10000):
        try:
            return socket.create_server((Pooler.host, port))
        except OSError:
            pass    # somebody has it
    raise StackError("no port below 10000 is free")


class Pgpool(Other):
    title, program = "pgpool-II", "usr/sbin/pgpool"

    def command(self):
        passwords = "".join(f"{name}:TEXT{password}\n" for name, password in self.passwords.items())
        self.write("pool_passwd", passwords)
        hba = self.write("pool_hba.conf", "host all all 0.0.0.0/0 scram-sha-256\n")
        pcp = self.write("pcp.conf", "")
        config = self.write("pgpool.conf", f"""backend_clustering_mode = 'raw'
listen_addresses = '{self.host}'
port = {self.port}
unix_socket_directories = '{self.folder}'
pcp_socket_dir = '{self.folder}'
pcp_port = {free_port()}
pid_file_name = '{self.folder}/pgpool.pid'
logdir = '{self.folder}'
backend_hostname0 = '{self.target[0]}'
backend_port0 = {self.target[1]}
enable_pool_hba = on
pool_passwd = '{self.folder}/pool_passwd'
num_init_children = {CONNECTIONS}
max_pool = 2
failover_on_backend_error = off
failover_on_backend_shutdown = off
""")
        return [self.package / self.program, "-n", "-D", "-f", config, "-a", hba, "-F", pcp]

    def stop(self, timeout=10):
        # its SIGTERM waits for its clients
        return self.end(signal.SIGINT, timeout)
