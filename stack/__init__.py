"""A real stack in a folder of its own: PostgreSQL, PgBouncer in transaction mode, and any number of Odoos.

    with Stack() as stack:
        stack.database("demo")
        odoo = stack.odoo().start("demo", workers=2)

Contract: nothing of this machine is touched but free ports on 127.0.0.1, the cache, and a private folder under the
system's temporary one. When the block ends, also by SIGINT or SIGTERM, everything that was started has ended and
the folder is gone.
"""
import shutil
import signal
import tempfile
import threading
from pathlib import Path

from .machine import Machine, StackError, say
from .servers.odoo import ADDON, Odoo
from .servers.pgbouncer import PgBouncer
from .servers.postgres import Postgres
from .servers.template import Template

__all__ = ["ADDON", "Machine", "Odoo", "PgBouncer", "Postgres", "Stack", "StackError", "say"]


class Stack:
    def __init__(self, machine=None, groups=("odoo",), pooler=None, series=None):
        """`pooler`: arguments of PgBouncer, see there. `series`: of Debian's Odoos, see machine.PACKAGES."""
        self.machine = machine or Machine.find(groups, series)
        self.pooler = pooler or {}
        self.folder = None
        self.started = []
        self.databases = set()
        self.signals = {}

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="bus-alt-"))
        self.odoo_data = self.folder / "odoo-data"
        self.odoo_data.mkdir()
        self.folder.chmod(0o711)        # the servers' user has to get to its own folder in it
        if threading.current_thread() is threading.main_thread():
            # as an exception, so that every `finally` on the way is run; SIGINT is one already
            self.signals[signal.SIGTERM] = signal.signal(signal.SIGTERM, interrupt)
        try:
            self.postgres = self.add(Postgres(self.machine, self.folder / "postgres"))
            self.postgres.init()
            self.pgbouncer = self.add(PgBouncer(self.machine, self.folder / "pgbouncer", self.postgres, **self.pooler))
            self.pgbouncer.start()
        except BaseException as exc:
            self.__exit__(type(exc), exc, None)
            raise
        return self

    def __exit__(self, *exc):
        if isinstance(exc[1] if exc else None, Exception):
            self.keep_logs()
        # the last started goes first; a second interrupt must not leave half of it running
        ours = threading.current_thread() is threading.main_thread()
        held = {number: signal.signal(number, signal.SIG_IGN)
                for number in (signal.SIGINT, signal.SIGTERM)} if ours else {}
        try:
            for program in reversed(self.started):
                program.end_by_force()
            shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            for number, handler in {**held, **self.signals}.items():
                signal.signal(number, handler)

    def keep_logs(self):
        """What went wrong can be read after the folder is gone."""
        kept = self.machine.cache.folder / "last-failure"
        shutil.rmtree(kept, ignore_errors=True)
        try:
            for program in self.started:
                if program.log.exists():
                    kept.mkdir(exist_ok=True)
                    shutil.copyfile(program.log, kept / f"{program.folder.name}.log")
        except OSError as exc:
            say(f"the servers' logs are not kept: {exc}")       # a full disk may be what failed
        else:
            say(f"the servers' logs are kept in {kept}")

    def add(self, program):
        """Have `program` ended with the stack."""
        self.started.append(program)
        return program

    def odoo(self, pooled=True, direct=True, name=None):
        """An Odoo of this stack, not started. `pooled`: its queries go through PgBouncer; `direct`: the addon is told
        where PostgreSQL is. All Odoos of a stack share one data folder, as they share databases."""
        folder = self.folder / (name or f"odoo-of-the-stack-{len(self.started)}")
        folder.mkdir()
        target = self.pgbouncer if pooled else self.postgres
        odoo = Odoo(self.machine, folder, target.host, target.port, self.postgres.odoo_password,
                    *((self.postgres.host, self.postgres.port) if direct else ()))
        odoo.data_dir = self.odoo_data
        return self.add(odoo)

    def database(self, name, modules=("base", "web", "bus"), addons=()):
        """Make a database with these modules: installed by Odoo the first time on this machine, then copied."""
        if name not in self.databases:
            Template(self, modules, addons).copy(name)
            self.databases.add(name)
        return name

    def drop(self, name):
        """Drop a database that `database` made, whoever is connected to it, as an administrator may."""
        self.databases.discard(name)
        self.postgres.query(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        shutil.rmtree(self.odoo_data / "filestore" / name, ignore_errors=True)


def interrupt(number, frame):
    raise KeyboardInterrupt
