"""A proxy that runs statements of its own on the sessions that it forwards, unseen by their clients.

What removes a LISTEN behind a listener's back: a pooler's reset query, an administrator's script, a bug. Contract:
`run` returns when every session has run the statement; its client sees nothing of it but what it changes. It reads the
protocol of PostgreSQL, so TLS has to be off (sslmode = disable).
"""
import select
import struct
import threading

from ..process import wait_until
from .network import CHUNK, Proxy

READY, NOTIFICATION = b"Z", b"A"


class Intruder(Proxy):
    def __init__(self, target):
        self.sessions = set()
        super().__init__(target)

    def pump(self, client, server):
        session = Session(client, server)
        self.sessions.add(session)
        try:
            while not self.closed:
                session.step()
        finally:
            self.sessions.discard(session)

    def run(self, statement, timeout=10):
        """Run a statement on every session of now; returns on how many."""
        sessions = list(self.sessions)
        for session in sessions:
            session.begin(statement)
        wait_until(lambda: all(session.done.is_set() or session not in self.sessions for session in sessions), timeout,
                   f"not run within {timeout} s: {statement}")
        return len(sessions)


class Session:
    """One connection: whole messages of the server's are passed on, but for answers to a statement of ours."""

    def __init__(self, client, server):
        self.client, self.server = client, server
        self.buffer = b""
        self.idle = False           # the server has answered all that the client asked
        self.statement = None
        self.ours = False           # what the server says is an answer to us
        self.done = threading.Event()

    def begin(self, statement):
        self.done.clear()
        self.statement = statement

    def step(self):
        if self.statement and self.idle and not self.ours:
            text = self.statement.encode() + b"\0"
            self.statement, self.ours = None, True
            self.server.sendall(b"Q" + struct.pack("!I", 4 + len(text)) + text)
        # while ours runs the client's next one waits
        reading = [self.server] if self.ours else [self.server, self.client]
        ready, _, _ = select.select(reading, [], [], 0.02)
        if self.client in ready:
            data = self.client.recv(CHUNK)
            if not data:
                raise ConnectionError
            self.idle = False
            self.server.sendall(data)
        if self.server in ready:
            data = self.server.recv(CHUNK)
            if not data:
                raise ConnectionError
            self.buffer += data
            self.pass_on()

    def pass_on(self):
        while len(self.buffer) >= 5:
            size = 1 + struct.unpack("!I", self.buffer[1:5])[0]
            if len(self.buffer) < size:
                return
            message, self.buffer = self.buffer[:size], self.buffer[size:]
            kind = message[:1]
            if not self.ours or kind == NOTIFICATION:
                self.client.sendall(message)
            if kind == READY:
                self.idle = message[5:6] == b"I"
                if self.ours:
                    self.ours = False
                    self.done.set()
