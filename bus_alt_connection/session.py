# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""One direct connection's life as a listener, from LISTEN until it is lost.

Two detectors find a loss, independent of each other: TCP (``keepalives*``, ``tcp_user_timeout``)
and a heartbeat, a statement that asks which LISTENs stand. It takes no transaction id and wakes
nobody, which a NOTIFY would: every listener of the database, up to PostgreSQL 18.
"""

import os
import random
import socket
import time
from typing import Any, Callable, Dict, List, Optional

from psycopg2 import extensions

import odoo

from . import endpoints
from .connection import Connection
from .errors import ConnectionLost
from .settings import Settings
from .tasks import Signal, Tasks

# On the server's side, so that a host that is gone does not keep its backend; a server that lacks
# one of them is asked for the others.
SERVER_SETTINGS = """
SELECT set_config(name, value, false) FROM pg_settings JOIN (VALUES
    ('idle_session_timeout', '0'), ('tcp_keepalives_idle', '{every}'),
    ('tcp_keepalives_interval', '{every}'), ('tcp_keepalives_count', '3'),
    ('tcp_user_timeout', '{timeout}')) AS wanted (name, value) USING (name)
"""
HEARTBEAT = "SELECT pg_listening_channels()"
# Prepared, it is neither parsed nor planned anew. Not through a pooler: its server connections
# may have one of this name already, of another listener.
PREPARE, PREPARED = f"PREPARE listening_channels AS {HEARTBEAT}", "EXECUTE listening_channels"
# In the application name, of which PostgreSQL keeps 63 characters: the end tells containers apart.
HOST = socket.gethostname()[-24:]


def application_name(listener: str) -> str:
    """What PostgreSQL shows of a listener: its name, and the host and the process that have it."""
    process = "evented" if odoo.evented else "odoo"
    return f"bus_alt_connection {listener} {process} {HOST} {os.getpid()}"


def tcp_parameters(every: float) -> Dict[str, Any]:
    """libpq's parameters with which a path that is silent for so many seconds is lost."""
    parameters = {
        "keepalives": 1,
        "keepalives_idle": max(1, int(every)),
        "keepalives_interval": max(1, int(every / 3)),
        "keepalives_count": 3,
    }
    if extensions.libpq_version() >= 120000:
        parameters["tcp_user_timeout"] = int(every * 1000)
    return parameters


def server_settings(every: float) -> str:
    """The statement with which the server gives the session up once it is silent for four times so long."""
    seconds = max(1, int(every))
    return SERVER_SETTINGS.format(every=seconds, timeout=4000 * seconds)


class Session:
    """A connection that LISTENs.

    :ivar host: where it goes, for people, and ``endpoint`` with what is known of the other side
    :ivar replaceable: whether there are other endpoints to try
    :ivar identity: which server and database that is, as ``endpoints.IDENTITY``
    :ivar pooler: whether a pooler is in between
    :ivar round_trip: seconds of the latest heartbeat, or None
    """

    # Of heartbeat_seconds: from one heartbeat to the next, with jitter, so that those who began
    # together do not beat together, and the time limit for its answer; no more than twice in all.
    BEATS = (1.1, 1.2)
    LIMIT = 0.8
    # A round is what is read at once. Where one follows so closely on another, the next waits: a
    # cluster with a thousand notifications a second would wake this process as often.
    CLOSE_SECONDS = 0.002
    PAUSE_SECONDS = 0.005

    def __init__(self, connection: Connection, settings: Settings, channels: List[str]) -> None:
        """See ``open``."""
        self._connection, self._settings, self._channels = connection, settings, channels
        self.host = self.endpoint = endpoints.shown(connection.info)
        self.replaceable = False
        self.identity: tuple = ()
        self.pooler = False
        self.round_trip: Optional[float] = None
        self.private = channels[0]
        self._token = ""
        self._proof = Signal()
        self._arrived: Callable[[Dict[str, List[str]]], None] = lambda payloads: None
        self._beating = False  # a heartbeat has no answer yet
        self._read_at = 0.0
        self._ended: Optional[Exception] = None
        self._changed = Signal()

    @classmethod
    async def open(
        cls, info: Dict[str, Any], settings: Settings, name: str, channels: List[str]
    ) -> "Session":
        """Connect and LISTEN.

        :param name: the listener's
        :param channels: a private one first
        :raises ConnectionLost: if either cannot be done
        """
        timeout = settings.connect_timeout_seconds
        info = dict(
            info,
            application_name=application_name(name),
            **tcp_parameters(settings.heartbeat_seconds),
        )
        connection = await Connection.open(info, timeout, timeout / 6)
        session = cls(connection, settings, channels)
        try:
            await session._prepare()
        except BaseException:  # also if the task is cancelled
            connection.close()
            raise
        return session

    async def _prepare(self) -> None:
        sql = f"SELECT pg_backend_pid(), pg_is_in_recovery(), {endpoints.IDENTITY}"
        pid, in_recovery, started, database = (await self._connection.query(sql))[0]
        self.identity = (started, database)
        if in_recovery:
            raise ConnectionLost(
                "the server is a standby (in recovery mode), where LISTEN is impossible"
            )
        # A pooler answers with a process id of its own making.
        self.pooler = pid != self._connection.backend_pid
        if not self.pooler:  # a pooler's connection is left as it is: others use it
            settings = server_settings(self._settings.heartbeat_seconds)
            await self._connection.query(f"{settings}; {PREPARE}")
        listen = "".join(f"LISTEN {_quoted(channel)};" for channel in self._channels)
        self._pid = (await self._connection.query(listen + "SELECT pg_backend_pid()"))[0][0]
        self.endpoint += " (through a pooler)" if self.pooler else f" (backend pid {pid})"

    async def serve(self, tasks: Tasks, arrived: Callable[[Dict[str, List[str]]], None]) -> None:
        """Pass on what arrives, and see that heartbeats are answered.

        :param tasks: runs this
        :param arrived: called with what arrived together: {channel: payloads}, but the private one
        :raises ConnectionLost: once the connection is lost, or is rejected
        """
        every = self._settings.heartbeat_seconds
        limit = every * self.LIMIT
        self._arrived = arrived
        self._connection.watch(tasks, self._readable)
        try:
            self._receive()  # what came along with the answer to the LISTEN
            while True:
                await self._pause(every * random.uniform(*self.BEATS))
                sent, self._beating = time.monotonic(), True
                self._connection.send(HEARTBEAT if self.pooler else PREPARED)
                self._receive()
                if self._beating:
                    await self._pause(limit)
                    # Read before judging: this process itself may have been stopped for a while.
                    self._receive()
                if self._ended is not None:
                    raise self._ended
                if self._beating:
                    raise ConnectionLost(f"no heartbeat was answered within {limit:g} s, the path is silent")
                self._check_channels()
                self.round_trip = time.monotonic() - sent
        finally:
            self._connection.unwatch()

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until a heartbeat is answered; the end of the session is raised."""
        if self._ended is None:
            await self._changed.wait(seconds)
        if self._ended is not None:
            raise self._ended

    def _readable(self) -> None:
        """A round: one that comes alone is read at once; of a flood many wait to be one."""
        busy = time.monotonic() - self._read_at < self.CLOSE_SECONDS
        self._receive()
        if busy:
            time.sleep(self.PAUSE_SECONDS)
        self._read_at = time.monotonic()

    def _receive(self) -> None:
        try:
            notifications = self._connection.receive()
            if self._beating and not self._connection.executing:
                self._beating = False
                self._changed.set()
            payloads: Dict[str, List[str]] = {}
            for notification in notifications:
                payloads.setdefault(notification.channel, []).append(notification.payload)
            if self._token in payloads.pop(self.private, ()):
                self._token = ""
                self._proof.set()
            if payloads:
                self._arrived(payloads)
        except Exception as exc:  # any: whoever calls this, it is `serve` that fails
            self.reject(exc)

    def _check_channels(self) -> None:
        standing = {channel for channel, in self._connection.result()}
        missing = [channel for channel in self._channels if channel not in standing]
        if missing:
            raise ConnectionLost(f"the LISTEN was removed ({', '.join(missing)})")

    def expect(self) -> str:
        """A new token, to be sent on the private channel."""
        self._token = f"{random.getrandbits(64):016x}"
        return self._token

    async def proved(self, timeout: float) -> bool:
        """Whether the token arrives within `timeout` seconds."""
        return not self._token or await self._proof.wait(timeout)

    def reject(self, problem: Exception) -> None:
        """Have ``serve`` end with this problem."""
        self._ended = problem
        self._changed.set()

    async def unlisten(self) -> None:
        """Leave no LISTEN behind in the server connection that a pooler gives to others."""
        sql = "".join(f"UNLISTEN {_quoted(channel)};" for channel in self._channels)
        for _ in range(20):
            if (await self._connection.query(sql + "SELECT pg_backend_pid()"))[0][0] == self._pid:
                return

    def close(self) -> None:
        self._connection.close()


def _quoted(channel: str) -> str:
    return '"' + channel.replace('"', '""') + '"'
