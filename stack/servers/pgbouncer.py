"""A private PgBouncer that runs with the pgbouncer.ini this repository ships.

Contract: a copy of the shipped file is included by a generated one, which overrides addresses, paths and users, and
nothing of how it pools. `start` returns when it accepts connections.
"""
import contextlib
import os
import secrets
import shutil
import socket
import threading

from ..machine import REPO
from ..process import DEADLINE, wait_until
from .poolers import Pooler
from .postgres import connect

ADMIN = "pooler_admin"


class PgBouncer(Pooler):
    title, program = "PgBouncer", "usr/sbin/pgbouncer"

    def __init__(self, machine, folder, postgres, port=None, databases=None, settings=None):
        """`databases` are lines of the section of that name: {"postgres": "pool_mode=session"} adds to host and port,
        `settings` overrides what is shipped. Both, and `target`, may be changed before a `reload`."""
        super().__init__(machine, folder, postgres, port)
        self.databases = dict(databases or {})
        self.settings = dict(settings or {})
        self.passwords[ADMIN] = secrets.token_urlsafe(18)

    def configure(self):
        # a copy: the checkout may lie where the pooler's user cannot read
        shipped = self.folder / "shipped.ini"
        shutil.copyfile(REPO / "pgbouncer.ini", shipped)
        users = self.write("userlist.txt", "".join(f'"{user}" "{password}"\n'
                                                   for user, password in self.passwords.items()))
        address = "host={} port={}".format(*self.target)
        databases = {"*": "", **self.databases}
        settings = {"listen_addr": self.host, "listen_port": self.port, "unix_socket_dir": "", "auth_file": users,
                    "admin_users": ADMIN, **self.settings}
        config = self.folder / "pgbouncer.ini"
        # The shipped file ends in its section [pgbouncer], which goes on here: opening that section a second time would
        # set all of it back to PgBouncer's defaults, pool_mode included.
        config.write_text("\n".join([
            f"%include {shipped}", *(f"{name} = {value}" for name, value in settings.items()),
            "[databases]", *(f"{name} = {address} {more}" for name, more in databases.items()), ""]))
        for path in (shipped, config):
            self.own(path)
        return config

    def start(self, timeout=DEADLINE):
        env = {**os.environ, **self.machine.env}
        self.launch([self.machine.pgbouncer, self.configure()], env, self.folder)
        wait_until(self.accepts, timeout, lambda: f"PgBouncer accepts no connection: {self.last_lines()}")
        return self

    def answer(self):
        # PostgreSQL may be away
        self.console().close()

    def reload(self):
        """Read the configuration again, as changed in `target`, `databases` and `settings`."""
        self.configure()
        self.command("RELOAD")

    @contextlib.contextmanager
    def changed(self, target=None, databases=None, settings=None):
        """Another `target`, and more `databases` and `settings`, in force until the block ends."""
        before = self.target, self.databases, self.settings
        self.target = target or self.target
        self.databases, self.settings = {**before[1], **(databases or {})}, {**before[2], **(settings or {})}
        try:
            self.renew()
            yield
        finally:
            self.target, self.databases, self.settings = before
            self.renew()

    def renew(self):
        """`reload`, and have no server connection live on that is of before."""
        self.reload()
        self.command("RECONNECT")

    def console(self):
        return connect(self.host, self.port, "pgbouncer", ADMIN, self.passwords[ADMIN])

    def command(self, text):
        """One command of the admin console: its rows as dicts. PAUSE, RESUME, RECONNECT, KILL and the like."""
        console = self.console()
        try:
            with console.cursor() as cr:
                cr.execute(text)
                names = [column[0] for column in cr.description or ()]
                return [dict(zip(names, row, strict=True)) for row in cr.fetchall()] if names else []
        finally:
            console.close()

    def pause(self, timeout):
        """PAUSE; False if transactions stay open for `timeout` seconds, and all goes on as before."""
        import psycopg2  # there is none before there is a virtual environment
        console, paused = self.console(), threading.Event()

        def run():
            with contextlib.suppress(psycopg2.Error):
                console.cursor().execute("PAUSE")
                paused.set()
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        given_up = not paused.wait(timeout)
        if given_up:
            with socket.socket(fileno=os.dup(console.fileno())) as wire:
                wire.shutdown(socket.SHUT_RDWR)
            self.command("RESUME")
        thread.join()
        console.close()
        return not given_up

    def show(self, what):
        """The rows of SHOW POOLS, SHOW CLIENTS and the like, as dicts."""
        return self.command(f"SHOW {what}")
