"""A database with modules installed, kept in the cache as a dump, because Odoo takes half a minute to make one.

Contract: `copy(name)` gives a database that Odoo made, through the pooler, with these modules, this Odoo and this
PostgreSQL; none of it is older than any of them.
"""
import hashlib
import os
import shutil
import uuid

from ..machine import say
from ..process import DEADLINE, wait_until
from .postgres import ODOO_USER, SUPERUSER


class Template:
    def __init__(self, stack, modules, addons=()):
        self.stack = stack
        self.modules, self.addons = tuple(modules), tuple(addons)
        self.name = "template_" + "_".join(self.modules)[:40]

    def key(self):
        # not its interpreter, which also differs by what the tests import
        script = self.stack.machine.odoo.command[-1]
        server = self.stack.postgres.query("SHOW server_version_num")[0][0]
        parts = [str(script), os.stat(script).st_mtime_ns, self.stack.machine.odoo.series, server, self.modules,
                 *map(str, self.addons)]
        return "database-" + hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def copy(self, name):
        postgres = self.stack.postgres
        if self.name not in self.stack.databases:
            self.provide()
            self.stack.databases.add(self.name)
        wait_until(lambda: self.copied(name), DEADLINE, f"the database {self.name} stays in use: it cannot be copied")
        # as Odoo does when it duplicates a database
        postgres.query("UPDATE ir_config_parameter SET value = %s WHERE key = 'database.uuid'",
                       [str(uuid.uuid4())], dbname=name)
        if (self.filestore / self.name).is_dir():
            shutil.copytree(self.filestore / self.name, self.filestore / name)

    def copied(self, name):
        """Whether it could be copied: one with connections cannot be.

        The pooler keeps its own open, and a server that serves all databases may look into it at any moment.
        """
        import psycopg2
        self.stack.postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                                  [self.name])
        try:
            self.stack.postgres.query(f'CREATE DATABASE "{name}" TEMPLATE "{self.name}" OWNER {ODOO_USER}')
        except psycopg2.errors.ObjectInUse:
            return False
        # A sequence of the copy may give the same values again after a crash: PostgreSQL logs a sequence ahead, and for
        # the copy only from the next checkpoint on.
        self.stack.postgres.query("CHECKPOINT")
        return True

    @property
    def filestore(self):
        return self.stack.odoo_data / "filestore"

    def provide(self):
        """The template in this stack's PostgreSQL: from the cache, or by Odoo and then into the cache."""
        if self.stack.machine.odoo.own:
            self.install()      # what was installed from a tree that changes is not kept
            return
        installed = []

        def make(folder, work):
            self.install()
            self.save(folder)
            installed.append(True)
        folder = self.stack.machine.cache.made(self.key(), make)
        if not installed:
            self.load(folder)

    def install(self):
        say(f"Odoo installs {', '.join(self.modules)} through the pooler (half a minute, the first time)")
        # a name of its own: one stack may make several, and make one again that failed
        odoo = self.stack.odoo(name=f"odoo-install-{len(self.stack.started)}")
        odoo.create_database(self.name, self.modules, self.addons)

    def save(self, folder):
        exchange = self.stack.postgres.folder / "template.dump"     # where the server's user may write
        self.client_program("pg_dump", "--format=custom", "--compress=1", f"--file={exchange}", self.name)
        shutil.move(exchange, folder / "dump")
        if (self.filestore / self.name).is_dir():
            shutil.copytree(self.filestore / self.name, folder / "filestore")

    def load(self, folder):
        postgres = self.stack.postgres
        exchange = postgres.folder / "template.dump"
        shutil.copyfile(folder / "dump", exchange)
        exchange.chmod(0o644)
        postgres.query(f'CREATE DATABASE "{self.name}" TEMPLATE template0 OWNER {ODOO_USER}')
        self.client_program("pg_restore", "--jobs=2", f"--dbname={self.name}", exchange)
        exchange.unlink()
        if (folder / "filestore").is_dir():
            shutil.copytree(folder / "filestore", self.filestore / self.name)

    def client_program(self, name, *args):
        postgres = self.stack.postgres
        postgres.program(name, "--host", postgres.host, "--port", str(postgres.port), "--username", SUPERUSER, *args,
                         PGPASSWORD=postgres.passwords[SUPERUSER])
