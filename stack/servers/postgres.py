"""A private PostgreSQL: own folder, free port, SCRAM for everyone, never the system's.

Contract: `start` returns when it accepts connections, `stop` when it is gone. A restart keeps its port and its data.
Settings are given on the command line, so that a copy of the folder (a standby) can run beside it.
"""
import os
import secrets
import select
import shutil
import signal
import time
from pathlib import Path

from ..machine import StackError, run
from ..process import DEADLINE, Program, free_port, wait_until

SUPERUSER = "postgres"
ODOO_USER = "odoo"      # may log in and create databases, nothing else: what Odoo is meant to have

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "password_encryption": "scram-sha-256",
    "max_connections": "400",           # of which listeners that come and go take some
    "track_commit_timestamp": "on",     # when a notification was committed, told by the one who committed it
    # a standby can be made at any time
    "wal_level": "replica",
    "max_wal_senders": "10",
    "hot_standby": "on",
    # the folder is thrown away at the end: nothing of it has to survive a power cut
    "fsync": "off",
    "full_page_writes": "off",
}

CONNECT, ANSWER = 5, 2 * DEADLINE     # seconds
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


def connect(host, port, dbname, user, password, **kw):
    """A psycopg2 connection in autocommit mode."""
    # psycopg2 is in the virtual environment, which ./dev imports this package to make
    import psycopg2
    psycopg2.extensions.set_wait_callback(wait)
    connection = psycopg2.connect(host=host, port=port, dbname=dbname, user=user, password=password, **kw)
    connection.autocommit = True
    return connection


def wait(connection):
    """How psycopg2 waits here: a signal interrupts it, and a server that never answers is given up."""
    import psycopg2
    connected = connection.status in (psycopg2.extensions.STATUS_READY, psycopg2.extensions.STATUS_BEGIN)
    seconds = ANSWER if connected else CONNECT
    deadline = time.monotonic() + seconds
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        sides = [[connection], []] if state == psycopg2.extensions.POLL_READ else [[], [connection]]
        if not any(select.select(*sides, [], max(0, deadline - time.monotonic()))):
            raise psycopg2.OperationalError(f"no answer within {seconds} s")


class Postgres(Program):
    host = "127.0.0.1"

    def __init__(self, machine, folder, port=None):
        self.machine = machine
        self.folder = Path(folder)
        self.data = self.folder / "data"
        self.port = port or free_port()
        self.passwords = {}
        self.settings = {}          # beside SETTINGS, from the next start on
        self.environ = {}           # beside the usual environment, from the next start on
        self.folder.mkdir(parents=True, exist_ok=True)
        if machine.run_as:
            os.chown(self.folder, *machine.run_as)
        super().__init__("PostgreSQL", self.folder / "postgres.log", machine.run_as)

    @property
    def socket_dir(self):
        return str(self.folder)

    @property
    def odoo_password(self):
        return self.passwords[ODOO_USER]

    def env(self, **more):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {**clean, "LC_ALL": "C", **self.machine.env, **self.environ, **more}

    def program(self, name, *args, **env):
        """Run one of PostgreSQL's programs to its end as the server's user."""
        user = {"user": self.run_as[0], "group": self.run_as[1], "extra_groups": []} if self.run_as else {}
        return run([self.machine.pg_bin / name, *args], f"{name} failed", env=self.env(**env), cwd=self.folder, **user)

    def init(self):
        self.passwords = {SUPERUSER: secrets.token_urlsafe(18), ODOO_USER: secrets.token_urlsafe(18)}
        secret = self.folder / "superuser"
        secret.touch(0o600)
        if self.run_as:
            os.chown(secret, *self.run_as)
        secret.write_text(self.passwords[SUPERUSER])
        self.program("initdb", "-D", self.data, "-U", SUPERUSER, f"--pwfile={secret}", "--auth=scram-sha-256",
                     "--encoding=UTF8", "--locale=C", "--no-sync")
        secret.unlink()
        self.start()
        self.query(f"CREATE ROLE {ODOO_USER} LOGIN CREATEDB PASSWORD %s", [self.odoo_password])
        return self

    def start(self, timeout=60, **settings):
        settings = {**SETTINGS, "port": self.port, "unix_socket_directories": self.socket_dir, **self.settings,
                    **settings}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self.launch([self.machine.pg_bin / "postgres", "-D", self.data, *options], self.env(), self.folder)
        wait_until(self.accepts, timeout, lambda: f"PostgreSQL accepts no connection: {self.last_lines()}")
        return self

    def accepts(self):
        import psycopg2
        if not self.running:
            raise StackError(f"PostgreSQL ended at its start: {self.last_lines()}")
        try:
            self.connect().close()
        except psycopg2.OperationalError:
            return False
        return True

    def stop(self, mode="fast", timeout=60):
        return self.end(STOP_SIGNALS[mode], timeout)

    def restart(self, mode="fast"):
        self.stop(mode)
        return self.start()

    def kill(self):
        """As if the machine had killed it: no goodbye to anyone."""
        self.end_by_force()

    def connect(self, dbname="postgres", user=SUPERUSER, **kw):
        return connect(**{"host": self.host, "port": self.port, "dbname": dbname, "user": user,
                          "password": self.passwords[user], **kw})

    def query(self, sql, params=None, dbname="postgres"):
        """The rows of one statement, by a superuser on a connection of its own."""
        connection = self.connect(dbname)
        try:
            with connection.cursor() as cr:
                cr.execute(sql, params)
                return cr.fetchall() if cr.description else []
        finally:
            connection.close()

    def standby(self, folder):
        """A streaming standby of this server, not started yet."""
        other = Postgres(self.machine, folder)
        other.follow(self)
        return other

    def follow(self, primary):
        """Make this server, which does not run, a standby of another one: its data is replaced."""
        self.passwords = dict(primary.passwords)
        shutil.rmtree(self.data, ignore_errors=True)
        self.program("pg_basebackup", "-h", primary.host, "-p", str(primary.port), "-U", SUPERUSER, "-D", self.data,
                     "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync",
                     PGPASSWORD=primary.passwords[SUPERUSER])

    def promote(self, timeout=60):
        """Make a standby the primary; returns when it accepts writes."""
        if not self.query("SELECT pg_promote(true, %s)", [timeout])[0][0]:
            raise StackError(f"the standby was not promoted in {timeout} s: {self.last_lines()}")
