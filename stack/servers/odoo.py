"""One Odoo server that runs with the odoo.conf this repository ships.

Contract: the shipped file is read and written again with addresses, ports, paths and passwords of this stack and the
modules that this series loads by itself, and nothing else changed but what the caller asks for. `start` returns when
HTTP answers (and the evented process, where there is one); `stop` returns the seconds it took, and nothing of it runs
on.
"""
import configparser
import http.client
import os
import re
import signal
import subprocess
from pathlib import Path

from ..machine import REPO, StackError
from ..process import DEADLINE, Program, children, free_port, wait_until
from ..series import Series

ADDON = "bus_alt_connection"
# the user's own settings of these would reach our Odoo and our PostgreSQL
FOREIGN = ("PG", "ODOO_", "OPENERP_", "IMDISPATCHER_", "PYTHON")


class Odoo(Program):
    host = "127.0.0.1"

    def __init__(self, machine, folder, db_host, db_port, password, direct_host=None, direct_port=None):
        """db_*: where Odoo's queries go. direct_*: what the addon is told in odoo.conf (None: it is told nothing)."""
        self.machine = machine
        self.source = machine.odoo
        self.folder = Path(folder)
        self.db_host, self.db_port, self.password = db_host, db_port, password
        self.direct_host, self.direct_port = direct_host, direct_port
        self.series = self.source.series
        self.facts = Series(self.series[0])
        self.http_port, self.evented_port = free_port(), free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data_dir = self.folder / "data"
        self.workers = 0
        self.system_database = "postgres"
        # as whoever runs us, root too: its interpreter and the checkout may be readable to nobody else
        super().__init__("Odoo", self.folder / "odoo.log")

    @property
    def url(self):
        return f"http://{self.host}:{self.http_port}"

    @property
    def evented_url(self):
        """Where websockets and long polling are served."""
        return f"http://{self.host}:{self.evented_port}" if self.workers else self.url

    @property
    def evented_pid(self):
        """The process that serves websockets and long polling."""
        if not self.workers:
            return self.pid
        return self.evented_pids[0]

    @property
    def evented_pids(self):
        """The same where there may be several of them."""
        if not self.workers:
            return [self.pid]
        return [pid for pid in children(self.pid) if b"gevent" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def addons_path(self, extra=()):
        # The repository's other folders are no addons: Odoo sees a folder that holds the addon alone.
        own = self.folder / "addons"
        own.mkdir(exist_ok=True)
        if (REPO / ADDON).is_dir() and not (own / ADDON).is_symlink():
            (own / ADDON).symlink_to(REPO / ADDON)
        return ",".join([*self.source.addons, str(own), *map(str, extra)])

    def config(self, options=None, addons=()):
        """Write the odoo.conf of this server; `options` with the value None are left out."""
        parser = configparser.RawConfigParser()
        parser.read(REPO / "odoo.conf")
        shipped = dict(parser["options"]) if parser.has_section("options") else {}
        own = {
            "db_host": self.db_host, "db_port": self.db_port, "db_user": "odoo", "db_password": self.password,
            "http_interface": self.host, "http_port": self.http_port, self.facts.evented_port: self.evented_port,
            "data_dir": self.data_dir, "addons_path": self.addons_path(addons),
            "imdispatcher_db_host": self.direct_host, "imdispatcher_db_port": self.direct_port,
        }
        merged = {**shipped, **own, **(options or {})}
        # the shipped file and the pages are for series 19
        merged["server_wide_modules"] = merged["server_wide_modules"].replace(Series(19).server_wide,
                                                                              self.facts.server_wide)
        parser = configparser.RawConfigParser()
        parser["options"] = {name: str(value) for name, value in merged.items() if value is not None}
        path = self.folder / "odoo.conf"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            parser.write(file)
        return path

    def env(self, more=None):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        # on a reload Odoo starts itself again by its interpreter's bare name
        kept["PATH"] = os.path.dirname(self.source.command[0]) + os.pathsep + kept.get("PATH", "")
        # buffered output would reach the log too late to be waited for
        return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", **self.source.env, **(more or {})}

    def create_database(self, name, modules=("base", "web", "bus"), addons=(), timeout=600):
        """Make a database and install modules in it, through the address this Odoo was given."""
        self.run_once(name, "-i", ",".join(modules), *self.facts.without_demo, addons=addons, timeout=timeout)

    def run_once(self, database, *args, options=None, addons=(), env=None, timeout=600):
        """Run Odoo on a database without serving, until it is done: its output. An exit code is an error."""
        options = {"server_wide_modules": "base,web", "workers": 0, "max_cron_threads": 0, "db_name": database,
                   "imdispatcher_db_host": None, "imdispatcher_db_port": None, **(options or {})}
        command = [*self.source.command, "-c", str(self.config(options, addons)), *args, "--no-http",
                   "--stop-after-init"]
        try:
            done = subprocess.run(command, env=self.env(env), cwd=self.folder, stdin=subprocess.DEVNULL, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace", timeout=timeout)
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise StackError(f"Odoo did not end: {exc}") from exc
        with open(self.log, "a") as log:
            log.write(done.stdout)
        if done.returncode:
            raise StackError(f"Odoo ended with code {done.returncode}: {self.trouble()}")
        return done.stdout

    def start(self, database, workers=0, load=None, env=None, options=None, addons=(), args=(), ready=True,
              timeout=120):
        """Serve `database` (a name, or several in one string with commas).

        `load`: what server_wide_modules is to be, None for what the shipped odoo.conf says. `ready`: wait until it
        answers; without, `wait_ready` does.
        """
        self.workers = workers
        options = {"workers": workers, "db_name": database, **(options or {})}
        self.system_database = options.get("db_system", "postgres")
        if load is not None:
            options["server_wide_modules"] = load
        self.launch([*self.source.command, "-c", self.config(options, addons), *args], self.env(env), self.folder)
        return self.wait_ready(timeout) if ready else self

    def wait_ready(self, timeout=120):
        """Wait until HTTP answers, and the evented process where there is one."""
        ports = {self.http_port, self.evented_port if self.workers else self.http_port}
        wait_until(lambda: all(map(self.answers, ports)), timeout,
                   lambda: f"Odoo does not answer: {self.trouble()}")
        return self

    def trouble(self):
        """What the log complains of: the last exception or error line, else its end."""
        found = re.findall(r"^(?:.* (?:ERROR|CRITICAL) .*|[\w.]+(?:Error|Exception)\b.*)$", self.log_text(), re.M)
        return found[-1].strip() if found else self.last_lines()

    def answers(self, port):
        if not self.running:
            raise StackError(f"Odoo ended at its start: {self.trouble()}")
        connection = http.client.HTTPConnection(self.host, port, timeout=10)
        try:
            # any answer will do: older series do not know this route
            connection.request("GET", "/web/health")
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self, timeout=60):
        return self.end(signal.SIGTERM, timeout)

    def restart(self, *args, **kw):
        self.stop()
        return self.start(*args, **kw)

    def kill(self):
        self.end_by_force()

    def reload(self):
        """Ask for what an administrator's reload asks for; wait_log tells when it is done."""
        self.signal(signal.SIGHUP)

    def wait_log(self, pattern, timeout=DEADLINE, since=0):
        """The first match in the log beyond `since` bytes (see log_size), awaited."""
        found = []

        def look():
            found[:] = [re.search(pattern, self.log_text(since), re.M)]
            return found[0]
        wait_until(look, timeout, lambda: f"not in Odoo's log within {timeout} s: {pattern}")
        return found[0]
