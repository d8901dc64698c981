"""A private HAProxy that runs with a configuration of the documentation.

Contract: `start` returns when it accepts connections. Where the machine has no HAProxy, Debian's package is unpacked
into the cache and nothing is installed.
"""
import glob
import os
import shutil
import socket
from pathlib import Path

from .machine import Apt, Unavailable, need_debian, run, unpack
from .process import DEADLINE, Program, wait_until


def find(cache):
    """(HAProxy, the environment it needs)"""
    found = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found:
        return Path(found), {}

    def make(folder):
        apt = Apt(cache.folder / "apt")
        apt.update()
        unpack(apt.install(["haproxy"]), folder)

    need_debian("HAProxy is not on this machine", Unavailable)
    root = cache.made("haproxy", make)
    libraries = {os.path.dirname(path) for path in glob.glob(f"{root}/**/*.so.*", recursive=True)}
    return root / "usr/sbin/haproxy", {"LD_LIBRARY_PATH": ":".join(sorted(libraries))}


class HAProxy(Program):
    host = "127.0.0.1"

    def __init__(self, machine, folder, port, text):
        """`text`: a configuration that listens on 127.0.0.1 and this port."""
        self.folder, self.port = Path(folder), port
        self.folder.mkdir()
        self.program, self.more = find(machine.cache)
        self.socket = self.folder / "admin"
        self.config = self.folder / "haproxy.cfg"
        self.config.write_text(text.replace("global\n", f"global\n    stats socket {self.socket}\n", 1))
        super().__init__("HAProxy", self.folder / "haproxy.log")

    @property
    def env(self):
        return {**os.environ, **self.more}

    def check(self):
        """Have it read its configuration; raises StackError with what it complains of."""
        return run([self.program, "-c", "-f", self.config], "HAProxy refuses its configuration", env=self.env)

    def start(self, timeout=DEADLINE):
        self.check()
        self.launch([self.program, "-db", "-f", self.config], self.env, self.folder)
        wait_until(self.accepts, timeout, lambda: f"HAProxy accepts no connection: {self.last_lines()}")
        return self

    def accepts(self):
        if not self.socket.exists():        # it is there a moment after the port
            return False
        try:
            socket.create_connection((self.host, self.port), 1).close()
        except OSError:
            return False
        return True

    def servers(self, backend):
        """{server: its row of the statistics}"""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self.socket))
            admin.sendall(b"show stat\n")
            text = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
        header, *rows = [line.split(",") for line in text.lstrip("# ").splitlines() if line]
        found = [dict(zip(header, row, strict=True)) for row in rows]
        return {row["svname"]: row for row in found
                if row["pxname"] == backend and row["svname"] not in ("FRONTEND", "BACKEND")}

    def states(self, backend):
        """{server: "UP" or "DOWN"}"""
        return {name: row["status"].split()[0] for name, row in self.servers(backend).items()}
