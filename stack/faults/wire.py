"""Proxies that read PostgreSQL's protocol and answer some statements in their own way: a server or a pooler that does.

Contract: whole messages are passed on, in order; what a subclass does not name passes as it came. TLS is declined, so
a client that requires it ends. Statements are those of the simple query protocol, which psycopg2 speaks.
"""
import re
import select
import struct
import threading

from .network import CHUNK, Proxy

TLS, GSS, CANCEL = 80877103, 80877104, 80877102
QUERY, KEY = b"Q", b"K"
LISTEN = re.compile(r"\s*listen\b", re.IGNORECASE)


def message(kind, body):
    return kind + struct.pack("!I", 4 + len(body)) + body


def error(code, text, detail):
    """The answer to a statement that failed."""
    fields = {"S": "ERROR", "V": "ERROR", "C": code, "M": text, "D": detail}
    body = b"".join(name.encode() + value.encode() + b"\0" for name, value in fields.items()) + b"\0"
    return message(b"E", body) + message(b"Z", b"I")


class Wire(Proxy):
    """What subclasses may change: `query`, the text of a statement, and `key`, the process id that the server says."""

    def query(self, text):
        """(what is passed on in place of this text, or None; what is answered to the client by then, or b"")."""
        return text, b""

    def key(self, pid):
        return pid

    def pump(self, client, server):
        started, asked, answered = False, b"", b""
        while not self.closed:
            for side in select.select([client, server], [], [], 0.05)[0]:
                data = side.recv(CHUNK)
                if not data:
                    return
                if side is client:
                    asked += data
                else:
                    answered += data
            if not started:
                started, asked = self.start(client, server, asked)
            while started and len(asked) >= 5:
                kind, body, asked, whole = self.cut_off(asked)
                if not whole:
                    break
                reply = b""
                if kind == QUERY:
                    text, reply = self.query(body[:-1].decode())
                    body = None if text is None else text.encode() + b"\0"
                if body is not None:
                    server.sendall(message(kind, body))
                if reply:
                    client.sendall(reply)
            while len(answered) >= 5:
                kind, body, answered, whole = self.cut_off(answered)
                if not whole:
                    break
                if kind == KEY:
                    pid, secret = struct.unpack("!I", body[:4])[0], body[4:]
                    body = struct.pack("!I", self.key(pid)) + secret
                client.sendall(message(kind, body))

    @staticmethod
    def cut_off(data):
        """(kind and body of the first message, what is left, whether it was there as a whole)"""
        size = 1 + struct.unpack("!I", data[1:5])[0]
        if len(data) < size:
            return b"", b"", data, False
        return data[:1], data[5:size], data[size:], True

    @staticmethod
    def start(client, server, asked):
        """The messages before the first that has a kind: (whether it has begun, what is left)."""
        while len(asked) >= 8:
            size, code = struct.unpack("!II", asked[:8])
            if len(asked) < size:
                break
            first, asked = asked[:size], asked[size:]
            if code in (TLS, GSS):
                client.sendall(b"N")
                continue
            server.sendall(first)
            if code != CANCEL:
                return True, asked
        return False, asked


class LostStatus(Wire):
    """LISTEN fails as in a cluster whose NOTIFY queue names a transaction that is frozen, until `is_mended`.

    As PostgreSQL before its minors of November 2025: asking how full the queue is moves its end beyond that.
    """

    def __init__(self, target):
        self.mended = threading.Event()
        self.failed = 0     # LISTENs
        super().__init__(target)

    def again(self):
        self.failed = 0
        self.mended.clear()

    def query(self, text):
        if "pg_notification_queue_usage" in text.lower():
            self.mended.set()
        if self.mended.is_set() or not any(map(LISTEN.match, text.split(";"))):
            return text, b""
        self.failed += 1
        return None, error("58P01", "could not access status of transaction 736",
                           'Could not open file "pg_xact/0000": No such file or directory.')


class ServesListen(Wire):
    """A pooler that serves LISTEN itself: its clients have process ids of its own.

    :param first_only: of several statements in one query that begins with LISTEN it runs the first
    :param unknown: a function without rows; asked which channels it listens on, a backend of the pool knows none
    """

    def __init__(self, target, first_only, unknown):
        self.first_only, self.unknown = first_only, unknown
        super().__init__(target)

    def key(self, pid):
        return 0x40000000 + pid

    def query(self, text):
        statements = [each for each in text.split(";") if each.strip()]
        if self.first_only and len(statements) > 1 and LISTEN.match(statements[0]):
            text = statements[0]
        return re.sub(r"(pg_catalog\.)?pg_listening_channels\b", self.unknown, text), b""
