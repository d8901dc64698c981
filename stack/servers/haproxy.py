"""A private HAProxy that runs with a configuration of the documentation.

Contract: `start` returns when it accepts connections. Where the machine has no HAProxy, Debian's package is unpacked
into the cache and nothing is installed.
"""
import os
import socket
from pathlib import Path

from ..download.programs import haproxy
from ..machine import run
from ..process import DEADLINE, Program, wait_until


class HAProxy(Program):
    host = "127.0.0.1"

    def __init__(self, machine, folder, port, text):
        """`text`: a configuration that listens on 127.0.0.1 and this port."""
        self.folder, self.port = Path(folder), port
        self.folder.mkdir()
        self.program, self.more = haproxy(machine.cache)
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
        try:
            socket.create_connection((self.host, self.port), 1).close()
            self.servers("any")     # its socket answers a moment after the port
        except (OSError, ValueError):
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
