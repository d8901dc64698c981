# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""One direct connection that LISTENs, from the connect on.

Two detectors find its loss, independent of each other: TCP (``keepalives*``, ``tcp_user_timeout``) and a heartbeat, a
statement that asks which LISTENs stand. It takes no transaction id and wakes nobody, as a NOTIFY would: every listener
of the database, up to PostgreSQL 18.
"""

import contextlib
import os
import socket
from typing import Any, Dict, List, Optional

from psycopg2 import extensions

import odoo

from . import endpoints, runtime
from .errors import ConnectionLost, TimedOut
from .link import Link
from .settings import Settings

# On the server's side, so that a host that is gone does not keep its backend; a server that lacks one of them is
# asked for the others.
SERVER_SETTINGS = """
SELECT set_config(name, value, false) FROM pg_settings JOIN (VALUES
    ('idle_session_timeout', '0'), ('tcp_keepalives_idle', '{every}'),
    ('tcp_keepalives_interval', '{every}'), ('tcp_keepalives_count', '3'),
    ('tcp_user_timeout', '{timeout}')) AS wanted (name, value) USING (name)
"""
# Prepared, the heartbeat is neither parsed nor planned anew.
PREPARE, HEARTBEAT = "PREPARE listening_channels AS SELECT pg_listening_channels()", "EXECUTE listening_channels"
# In the application name, of which PostgreSQL keeps 63 characters: the end tells containers apart.
HOST = socket.gethostname()[-24:]


def tcp_parameters(every: float) -> Dict[str, Any]:
    """Return libpq's parameters with which a path that is silent for so many seconds is lost."""
    idle, interval = max(1, int(every)), max(1, int(every / 3))
    found = {"keepalives": 1, "keepalives_idle": idle, "keepalives_interval": interval, "keepalives_count": 3}
    if extensions.libpq_version() >= 120000:
        found["tcp_user_timeout"] = int(every * 1000)
    return found


def server_settings(every: float) -> str:
    """Return the statement with which the server ends the session once it is silent for four times so long."""
    seconds = max(1, int(every))
    return SERVER_SETTINGS.format(every=seconds, timeout=4000 * seconds)


class Session:
    """A connection that LISTENs.

    :ivar link: the connection
    :ivar host: where it goes, for people, and ``endpoint`` with what is known of the other side
    :ivar identity: which server and database that is, see ``endpoints.IDENTITY``
    :ivar pooler: whether a pooler is in between
    :ivar replaceable: whether there are other endpoints to try
    :ivar beat_at: runtime.monotonic() of the next heartbeat
    :ivar round_trip: seconds of the latest heartbeat, or None
    """

    # Of heartbeat_seconds: from one heartbeat to the next, with jitter, so that listeners that began together do not
    # beat together, and the time limit for an answer; no more than twice heartbeat_seconds in all.
    BEATS, ANSWER = (1.1, 1.2), 0.8
    replaceable = False

    def __init__(self, info: endpoints.Endpoint, settings: Settings, name: str, channels: List[str]) -> None:
        """Connect and LISTEN.

        :param name: the listener's
        :raises ConnectionLost: if either fails
        """
        self._channels, self._every, timeout = channels, settings.heartbeat_seconds, settings.connect_timeout_seconds
        process = "evented" if odoo.evented else "odoo"
        application = f"bus_alt_connection {name} {process} {HOST} {os.getpid()}"
        self.host = endpoints.shown(info)
        self.beat_at = runtime.monotonic() + self._every
        self.round_trip: Optional[float] = None
        info = dict(info, application_name=application, **tcp_parameters(self._every))
        self.link = Link.open(info, timeout, timeout / 6)
        try:
            self._prepare()
            self._listen()
        except BaseException:
            self.link.close()
            raise

    def _prepare(self) -> None:
        sql = f"SELECT pg_backend_pid(), pg_is_in_recovery(), {endpoints.IDENTITY}"
        pid, standby, started, database = self.link.query(sql)[0]
        if standby:
            raise ConnectionLost("the server is a standby (in recovery mode), where LISTEN is impossible")
        self.identity = (started, database)
        self.pooler = pid != self.link.backend_pid  # a pooler answers with a process id of its own making
        self.endpoint = self.host + (" (through a pooler)" if self.pooler else f" (backend pid {pid})")
        if not self.pooler:  # a pooler's connection is left as it is: others use it
            self.link.query(server_settings(self._every))
            self.link.query(PREPARE)

    def _listen(self) -> None:
        try:
            # One statement each: some poolers that serve LISTEN themselves answer only the first of several.
            for channel in self._channels:
                self.link.query(f"LISTEN {_quoted(channel)}")
        except ConnectionLost:
            # After "could not access status of transaction" the next LISTEN succeeds once this has moved the queue's
            # tail past what vacuum has removed. After another error it does no harm.
            with contextlib.suppress(ConnectionLost):
                self.link.query("SELECT pg_notification_queue_usage()")
            raise

    def beat(self) -> None:
        """Ask the server for a sign of life, and which LISTENs stand. A pooler has to answer only.

        :raises ConnectionLost: if either is missing
        """
        sent, limit = runtime.monotonic(), self._every * self.ANSWER
        self.beat_at = sent + self._every * runtime.uniform(*self.BEATS)
        try:
            rows = self.link.query("SELECT 1" if self.pooler else HEARTBEAT, timeout=limit)
        except TimedOut:
            raise ConnectionLost(f"no heartbeat was answered within {limit:g} s, the path is silent")
        self.round_trip = runtime.monotonic() - sent
        missing = set(self._channels) - {channel for channel, in rows}
        if missing and not self.pooler:
            raise ConnectionLost(f"the LISTEN was removed ({', '.join(sorted(missing))})")

    def close(self, unlisten: bool = False) -> None:
        """Close the connection.

        :param unlisten: whether to leave no LISTEN behind in the server connections that a pooler gives to others
        """
        with contextlib.suppress(ConnectionLost):  # then the server connection's end ends the LISTEN
            for _turn in range(10 if unlisten and self.pooler else 0):  # each may be another server connection
                for channel in self._channels:
                    self.link.query(f"UNLISTEN {_quoted(channel)}")
        self.link.close()


def _quoted(channel: str) -> str:
    return '"' + channel.replace('"', '""') + '"'
