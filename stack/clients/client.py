"""Clients of a running Odoo, as a browser is one, and senders of notifications.

Contract: what a client received is in `received`, in order, with the time it came; `next` awaits the next one. A client
whose connection is lost opens it again at once and asks for what came after its last id, as the web client does.
Works with series 12 to 19: websockets since 16, long polling before.
"""
import http.client
import json
import queue
import socket
import threading
import time
from collections import namedtuple
from urllib.parse import urlsplit

import requests
import websocket

from ..process import DEADLINE

# `at` is time.monotonic() and `clock` time.time() when it came
Notification = namedtuple("Notification", "id payload at clock type")

RETRY = 0.1


class OdooError(Exception):
    """The server answered with an error. `trace` is its own, where it gave one."""

    def __init__(self, message, trace=""):
        super().__init__(message)
        self.trace = trace


class Session:
    """A user who is logged in."""

    def __init__(self, odoo, database, login="admin", password="admin"):
        self.odoo, self.database = odoo, database
        self.http = requests.Session()
        self.facts = odoo.facts
        self.log_in(login, password)

    def log_in(self, login="admin", password="admin"):
        """Again where Odoo has logged the user out, as it does when a request finds no database."""
        info = self.rpc("/web/session/authenticate", db=self.database, login=login, password=password)
        if not info.get("uid"):
            raise OdooError(f"{login} may not log in to {self.database}")
        self.uid = info["uid"]

    def rpc(self, route, _timeout=60, **params):
        answer = self.http.post(self.odoo.url + route, timeout=_timeout,
                                json={"jsonrpc": "2.0", "method": "call", "id": 1, "params": params})
        answer.raise_for_status()
        return result(answer.json())

    def call_kw(self, model, method, *args, **kwargs):
        return self.rpc("/web/dataset/call_kw", model=model, method=method, args=list(args), kwargs=kwargs)

    def any_model(self):
        """The id of a model that every database has."""
        return self.call_kw("ir.model", "search", [["model", "=", "res.partner"]], limit=1)[0]

    def subscribe(self, channels, last=0):
        """A client of this series' own kind."""
        return CLIENTS[self.facts.client](self, channels, last)

    def websocket(self, channels, last=0):
        return WebSocket(self, channels, last)


def result(answer):
    """The result of a JSON-RPC answer."""
    if "error" in answer:
        error = answer["error"]
        data = error.get("data") or {}
        raise OdooError(data.get("message") or error.get("message"), data.get("debug") or "")
    return answer.get("result")


class Client:
    """What both kinds share: a thread that reads, a list of what came, and a queue to await it."""

    def __init__(self, session, channels, last=0):
        self.session, self.channels, self.last = session, list(channels), last
        self.received = []
        self.opened = 0             # how often it had to connect
        self.errors = []            # why
        self.queue = queue.Queue()
        self.closing = threading.Event()
        self.subscribed = threading.Event()
        self.thread = threading.Thread(target=self.run, name="client", daemon=True)
        self.thread.start()

    def run(self):
        while not self.closing.is_set():
            try:
                self.opened += 1
                self.listen()
            except (OSError, ValueError, OdooError, requests.RequestException, websocket.WebSocketException,
                    http.client.HTTPException) as exc:
                self.errors.append(exc)
            self.subscribed.clear()
            self.closing.wait(RETRY)

    def listen(self):
        raise NotImplementedError

    def take(self, messages):
        at, clock = time.monotonic(), time.time()
        for entry in messages:
            message = entry["message"]
            # since 15 a message is of a type and has a payload, before it was the payload itself
            typed = isinstance(message, dict) and set(message) == {"type", "payload"}
            payload, kind = (message["payload"], message["type"]) if typed else (message, None)
            notification = Notification(entry["id"], payload, at, clock, kind)
            self.last = max(self.last, notification.id)
            self.received.append(notification)
            self.queue.put(notification)

    def next(self, timeout=DEADLINE):
        """The next notification, or None when none comes in time.

        Before series 16 upstream may miss a NOTIFY that arrives between its look at the table and its wait. It looks
        again after 50 s, and the addon before that.
        """
        try:
            return self.queue.get(timeout=timeout)
        except queue.Empty:
            return None

    def wait_subscribed(self, timeout=DEADLINE):
        if not self.subscribed.wait(timeout):
            raise OdooError(f"not subscribed within {timeout} s: {self.errors[-1:] or 'no error'}")
        return self

    def close(self):
        self.closing.set()
        deadline = time.monotonic() + 10
        while self.thread.is_alive() and time.monotonic() < deadline:
            self.abort()        # again, as it may have been about to open a connection
            self.thread.join(0.1)

    def abort(self):
        """Cut the connection; an open client connects again."""
        raise NotImplementedError

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


class WebSocket(Client):
    socket = None

    def listen(self):
        odoo = self.session.odoo
        cookie = f"session_id={self.session.http.cookies.get('session_id')}"
        # no User-Agent: Odoo checks the version of browsers only
        self.socket = websocket.create_connection(
            odoo.evented_url.replace("http", "ws", 1) + "/websocket", cookie=cookie, origin=odoo.url, timeout=DEADLINE)
        try:
            self.socket.send(subscription(self.channels, self.last))
            self.socket.ping()
            self.socket.settimeout(None)
            while not self.closing.is_set():
                code, frame = self.socket.recv_data_frame(control_frame=True)
                if code == websocket.ABNF.OPCODE_PONG:
                    self.subscribed.set()
                elif code == websocket.ABNF.OPCODE_CLOSE:
                    raise OdooError(f"closed by the server: {frame.data!r}")
                elif code == websocket.ABNF.OPCODE_TEXT:
                    self.take(json.loads(frame.data))
        finally:
            self.socket.shutdown()

    def abort(self):
        if self.socket and self.socket.sock:
            cut(self.socket.sock)


def subscription(channels, last):
    """The message that subscribes. Odoo does not answer it; it answers a ping, after what came before."""
    return json.dumps({"event_name": "subscribe", "data": {"channels": channels, "last": last}})


class LongPolling(Client):
    connection = None

    def listen(self):
        # longer than the 50 s after which Odoo answers that there is nothing
        self.connection = self.connect(70)
        try:
            while not self.closing.is_set():
                self.poll(self.connection)
                if not self.subscribed.is_set():
                    self.peek()
                    self.subscribed.set()
                self.take(answer_of(self.connection) or [])
        finally:
            self.connection.close()

    def connect(self, timeout):
        address = urlsplit(self.session.odoo.evented_url)
        return http.client.HTTPConnection(address.hostname, address.port, timeout=timeout)

    def poll(self, connection, **options):
        headers = {"Content-Type": "application/json",
                   "Cookie": f"session_id={self.session.http.cookies.get('session_id')}"}
        params = {"channels": self.channels, "last": self.last, "options": options}
        connection.request("POST", "/longpolling/poll", json.dumps({"params": params}), headers)

    def peek(self):
        """Ask the same and do not wait. Once that is answered the poll that began before has read the table, too."""
        connection = self.connect(DEADLINE)
        try:
            self.poll(connection, peek=True)
            answer_of(connection)
        finally:
            connection.close()

    def abort(self):
        if self.connection and self.connection.sock:
            cut(self.connection.sock)


def answer_of(connection):
    return result(json.loads(connection.getresponse().read()))


def cut(sock):
    """End a socket's connection: closing it alone would not wake the thread that reads."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass    # the other side was quicker


CLIENTS = {kind.__name__: kind for kind in (WebSocket, LongPolling)}


class Sender:
    """Sends notifications on one channel of one database: through Odoo, or as Odoo does."""

    def __init__(self, session, pooler, channel="demo"):
        self.session, self.pooler, self.channel = session, pooler, channel
        self.database = session.database
        self.facts = session.facts
        self.action = None
        self.connection = None

    def send_orm(self, payload, times=1):
        """Through Odoo's own API, in a transaction of an HTTP worker that commits; or in so many, one after the other.
        """
        if not self.action:
            model = self.session.any_model()
            self.action = self.session.call_kw("ir.actions.server", "create", {
                "name": "Send a notification", "model_id": model, "state": "code",
                # the last one is committed by the request itself
                "code": "for number in range(env.context['bus_times']):\n    if number:\n        env.cr.commit()\n    "
                        + self.orm_code("env.context['bus_channel']", "env.context['bus_payload']")})
        self.session.call_kw("ir.actions.server", "run", [self.action],
                             context={"bus_channel": self.channel, "bus_payload": payload, "bus_times": times})

    def orm_code(self, channel, payload):
        """The Python that sends, in an Odoo of this series, what these expressions give."""
        kind = f"{self.facts.message_type!r}, " if self.facts.message_type else ""
        return f"env['bus.bus'].{self.facts.send}({channel}, {kind}{payload})"

    @property
    def wire_channel(self):
        """The channel as it stands in the table and in a NOTIFY."""
        return [self.database, self.channel] if self.facts.message_type else self.channel

    def send_sql(self, payload):
        """As Odoo does, without Odoo: insert, commit, and NOTIFY through the pooler. Returns the row's id."""
        sent = self.insert(payload)
        self.notify(compact([self.wire_channel]))
        return sent

    def insert(self, payload):
        """The first half of it: a row that is committed when this returns. Returns its id."""
        kind = self.facts.message_type
        message = {"type": kind, "payload": payload} if kind else payload
        if self.connection is None or self.connection.closed:
            self.connection = self.pooler.connect(self.database)
        with self.connection.cursor() as cr:        # autocommit: committed when execute returns
            cr.execute("INSERT INTO bus_bus (channel, message, create_date, write_date, create_uid, write_uid) VALUES"
                       " (%s, %s, now() at time zone 'UTC', now() at time zone 'UTC', 1, 1) RETURNING id",
                       [compact(self.wire_channel), compact(message)])
            return cr.fetchone()[0]

    def notify(self, payload, channel="imbus"):
        """NOTIFY as Odoo does it: on a short connection to the system database, through the pooler."""
        connection = self.pooler.connect(self.session.odoo.system_database)
        try:
            connection.cursor().execute("SELECT pg_notify(%s, %s)", [channel, payload])
        finally:
            connection.close()

    def close(self):
        if self.connection:
            self.connection.close()


def compact(value):
    return json.dumps(value, separators=(",", ":"))


def commit_clock(postgres, database, ids):
    """When PostgreSQL committed these rows of bus_bus: {id: time.time() of then}."""
    rows = postgres.query("SELECT id, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM bus_bus"
                          " WHERE id = ANY(%s)", [list(ids)], dbname=database)
    return dict(rows)
