# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The listener: one thread that holds the direct connection and goes round its states.

Contract: whatever happens to PostgreSQL, the network, the settings or this process, the listener goes on trying, and
the loop that waits on its ``LoopConnection`` never sees an error. It is LISTENING only while it is known that NOTIFYs
reach it: each connection is proven by a NOTIFY through the pooled path, TCP and a heartbeat watch it, and whether the
pooled path leads to the same server is asked for as long as it lasts.
"""

import logging
import os
import socket
import threading
import weakref
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from psycopg2 import extensions

import odoo

from . import endpoints, errors, notifier, runtime
from .errors import ConnectionLost, TimedOut
from .link import Link
from .loop_connection import LoopConnection
from .pooled import PooledPath
from .settings import Settings
from .state import CONNECTING, LISTENING, STOPPED, VERIFYING, State, StateLog

_logger = logging.getLogger(__name__)

# On the server's side, so that a host that is gone does not keep its backend; a server that lacks one of them is
# asked for the others.
SERVER_SETTINGS = """
SELECT set_config(name, value, false) FROM pg_settings JOIN (VALUES
    ('idle_session_timeout', '0'), ('tcp_keepalives_idle', '{every}'),
    ('tcp_keepalives_interval', '{every}'), ('tcp_keepalives_count', '3'),
    ('tcp_user_timeout', '{timeout}')) AS wanted (name, value) USING (name)
"""
# Takes no transaction id and wakes nobody, as a NOTIFY would: every listener of the database, up to PostgreSQL 18.
# Prepared, it is neither parsed nor planned anew.
PREPARE = "PREPARE listening_channels AS SELECT pg_listening_channels()"
HEARTBEAT = "EXECUTE listening_channels"
# In the application name, of which PostgreSQL keeps 63 characters: the end tells containers apart.
HOST = socket.gethostname()[-24:]

_all: Any = weakref.WeakSet()
_lock = threading.Lock()  # a set may not grow while it is read


def listeners() -> "List[Listener]":
    """Return the listeners of this process that run."""
    with _lock:
        return [listener for listener in _all if listener.state.phase != STOPPED]


def tcp_parameters(every: float) -> Dict[str, Any]:
    """Return libpq's parameters with which a path that is silent for so many seconds is lost."""
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
    """Return the statement with which the server ends the session once it is silent for four times so long."""
    seconds = max(1, int(every))
    return SERVER_SETTINGS.format(every=seconds, timeout=4000 * seconds)


class Session(NamedTuple):
    """A connection that LISTENs."""

    link: Link
    host: str  # where it goes, for people
    pooler: bool  # whether a pooler is in between
    identity: Tuple[int, str]  # which server and database that is, see endpoints.IDENTITY
    replaceable: bool  # whether there are other endpoints to try


class Listener:
    """Keep one LISTENing connection.

    :param subscribers: whom notifications are for, see ``dispatcher.Subscribers`` and ``cron.Subscribers``
    :param settings: those of this process if not given

    :ivar state: a ``State``, to be read once
    :ivar changed: set whenever the state changes
    """

    PROOF_SECONDS = 3.0  # how long a NOTIFY may take from the pooled path to here
    START_SECONDS = 10.0  # so long attempts are quick after the start; after a loss for a minute
    # Of heartbeat_seconds: from one heartbeat to the next, with jitter, so that listeners that began together do not
    # beat together, and the time limit for an answer; no more than twice heartbeat_seconds in all.
    BEATS, ANSWER = (1.1, 1.2), 0.8
    # A cluster with a thousand notifications a second would wake this process as often. Where one reading follows
    # so closely on another, the next waits a little.
    CLOSE_SECONDS, PAUSE_SECONDS = 0.002, 0.005

    def __init__(self, subscribers: Any, settings: Optional[Settings] = None) -> None:
        self.subscribers = subscribers
        self.settings = settings or Settings.from_odoo()
        self.loop_connection = LoopConnection(on_close=self.stop)
        self.state = State(CONNECTING, runtime.monotonic(), lost_at=runtime.monotonic())
        self.changed = runtime.Event()
        self.stopping = runtime.Event()
        self.session: Optional[Session] = None
        self.doubted = False  # whether NOTIFYs may go elsewhere now
        self.received = self.malformed = 0
        self.degraded_seconds = 0.0  # in all, without the time since state.lost_at
        self.last_received: Optional[float] = None  # runtime.wall_clock()
        self.round_trip: Optional[float] = None  # seconds of the latest heartbeat
        self.path = PooledPath(self.settings.connect_timeout_seconds)
        self.recovery = subscribers.recovery(self)
        self._channels = ["bus_alt_connection_" + runtime.token()]
        self._rejected: List[str] = []  # hosts that NOTIFYs did not reach, latest last
        self._token: Optional[str] = None  # that has not arrived yet
        self._started = False
        self._beat_at = self._read_at = 0.0
        self._log = StateLog(subscribers.name, self.settings.poll_seconds)
        self._throttle = runtime.Throttle()
        self._malformed_logged = 0
        with _lock:
            _all.add(self)

    # -- what the loop's thread calls ----------------------------------------------------------------------------

    def listen(self, channel: str) -> None:
        """Add a channel; after ``begin`` the loop connection receives what arrives there."""
        self._channels.append(channel)

    def begin(self) -> None:
        """Begin to listen, as LISTEN does when its transaction commits."""
        if len(self._channels) > 1 and not self._started:
            self._started = True
            runtime.start_thread(self.run, self.subscribers.name)
            self.recovery.start()

    def stop(self) -> None:
        """End, without waiting for it."""
        self.stopping.set()
        session = self.session
        if session is not None:
            session.link.interrupt()
        if not self._started:
            self.enter(STOPPED)

    # -- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Connect, verify and listen until ``stop``."""
        backoff = runtime.Backoff(self.START_SECONDS)
        while not self.stopping.is_set():
            problem = None
            try:
                self._listen(self._connect())
            except ConnectionLost as exc:
                problem = exc
            except Exception:  # a defect of this addon must not silence the bus
                self.report_defect()
            if self.state.lost_at is None:
                backoff = runtime.Backoff()
            self.enter(CONNECTING, problem=problem)
            self._pause(backoff.next())
        self.path.close()
        self.enter(STOPPED)

    def enter(self, phase: str, endpoint: Optional[str] = None, problem: Optional[ConnectionLost] = None) -> None:
        """Replace the state: the only place where it changes, and where its change is logged."""
        now, before = runtime.monotonic(), self.state
        self.state = after = before.next(phase, now, endpoint, problem)
        if before.lost_at is not None and after.lost_at is None:
            self.degraded_seconds += now - before.lost_at
        self._log.change(before, after)
        self.changed.set()

    def _pause(self, seconds: float) -> None:
        """Wait for so long, or for ``stop``."""
        deadline = runtime.monotonic() + seconds
        while not self.stopping.is_set() and runtime.monotonic() < deadline:
            self.recovery.step_inline()
            self.stopping.wait(min(1.0, max(0.0, deadline - runtime.monotonic())))

    # -- connect -------------------------------------------------------------------------------------------------

    def _connect(self) -> Session:
        """Return a session on the first endpoint that accepts a LISTEN; the rejected ones are tried last."""
        problems = []
        targets = [each for info in endpoints.direct(self.settings) for each in self._resolve(info, problems)]
        hosts = {endpoints.shown(info): info for info in targets}
        for host in sorted(hosts, key=lambda host: self._rejected.index(host) if host in self._rejected else -1):
            self.recovery.step_inline()
            try:
                return self._open(host, hosts[host], len(hosts) > 1)
            except ConnectionLost as exc:
                passing = exc.cause.name == "standby" and len(hosts) > 1  # a failover may go on
                problems.append(ConnectionLost(exc.reason, host, errors.NO_PRIMARY if passing else exc.cause))
        # Of several endpoints the one to be mended is named, not the one that is just away.
        raise max(problems, key=lambda problem: problem.cause.level)

    @staticmethod
    def _resolve(info: endpoints.Endpoint, problems: List[ConnectionLost]) -> List[endpoints.Endpoint]:
        try:
            return endpoints.resolve(info)
        except ConnectionLost as exc:
            problems.append(ConnectionLost(exc.reason, endpoints.shown(info), exc.cause))
            return []

    def _open(self, host: str, info: endpoints.Endpoint, replaceable: bool) -> Session:
        every, timeout = self.settings.heartbeat_seconds, self.settings.connect_timeout_seconds
        process = "evented" if odoo.evented else "odoo"
        name = f"bus_alt_connection {self.subscribers.name} {process} {HOST} {os.getpid()}"
        link = Link.open(dict(info, application_name=name, **tcp_parameters(every)), timeout, timeout / 6)
        try:
            sql = f"SELECT pg_backend_pid(), pg_is_in_recovery(), {endpoints.IDENTITY}"
            pid, standby, started, database = link.query(sql)[0]
            if standby:
                raise ConnectionLost("the server is a standby (in recovery mode), where LISTEN is impossible")
            pooler = pid != link.backend_pid  # a pooler answers with a process id of its own making
            if not pooler:  # a pooler's connection is left as it is: others use it
                link.query(server_settings(every))
                link.query(PREPARE)
            self._subscribe(link)
        except BaseException:
            link.close()
            raise
        shown = f"{host} (through a pooler)" if pooler else f"{host} (backend pid {pid})"
        self.session = Session(link, host, pooler, (started, database), replaceable)
        self.enter(VERIFYING, endpoint=shown)
        return self.session

    def _subscribe(self, link: Link) -> None:
        # One statement each: some poolers that serve LISTEN themselves answer only the first of several.
        try:
            for channel in self._channels:
                link.query(f"LISTEN {_quoted(channel)}")
        except ConnectionLost:
            if link.usable:
                # "could not access status of transaction": the next LISTEN succeeds once this has moved the queue's
                # tail past what vacuum has removed. It does no harm if the LISTEN failed for another reason.
                link.query("SELECT pg_notification_queue_usage()")
            raise

    # -- listen --------------------------------------------------------------------------------------------------

    def _listen(self, session: Session) -> None:
        """Verify and listen until the connection is lost, which is raised."""
        self._beat_at = runtime.monotonic() + self.settings.heartbeat_seconds
        try:
            while not self.stopping.is_set():
                self._verify(session)
                self._rejected = [host for host in self._rejected if host != session.host]
                self.doubted = False
                self.enter(LISTENING)
                self.recovery.step_inline()
                self._serve(session, until=lambda: self.doubted)
                self.enter(VERIFYING)
        except ConnectionLost as exc:
            if session.pooler and not self.stopping.is_set():
                self._unsubscribe(session.link)
            raise ConnectionLost(exc.reason, exc.endpoint or session.host, exc.cause)
        finally:
            self.session = None
            session.link.close()

    def _verify(self, session: Session) -> None:
        """Return once a NOTIFY that took the pooled path has arrived.

        :raises ConnectionLost: if it does not arrive: then the session is of no use
        """
        backoff = runtime.Backoff()
        while not self.stopping.is_set():
            token = self._token = runtime.token()
            try:
                notifying = self.path.notify(self.subscribers.notify_function(), self._channels[0], token)
                break
            except ConnectionLost as exc:
                text, cause = f"Odoo's own db_host does not answer ({exc.reason})", exc.cause
                if exc.refused:
                    text, cause = f"Odoo's own db_host refuses them ({exc.reason})", errors.REFUSED
                self.enter(VERIFYING, problem=ConnectionLost(text, cause=cause))
            self._serve(session, seconds=max(backoff.next(), backoff.FIRST))
        else:
            return
        self._serve(session, seconds=self.PROOF_SECONDS, until=lambda: self._token is None)
        if self._token is None or self.stopping.is_set():
            return
        problem = errors.undelivered(session.host, session.identity, notifying, session.pooler)
        tried = session.host in self._rejected
        self._rejected = [host for host in self._rejected if host != session.host] + [session.host]
        if session.replaceable and not tried:
            problem.cause = problem.cause._replace(level=logging.WARNING, remedy="Trying the next endpoint.")
        elif problem.cause in (errors.OTHER_SERVER, errors.POOLER):
            problem.reason += self._report_address()
        raise problem

    def _report_address(self) -> str:
        try:
            host, port = self.path.address()
        except ConnectionLost:
            return ""  # only the hint is missing
        return (
            f" (PostgreSQL reports its address as imdispatcher_db_host = {host}, imdispatcher_db_port = {port})"
        )

    def check_path(self, path: PooledPath) -> None:
        """Ask whether the pooled path leads to the server that this listens on; if not, have it verified anew."""
        session = self.session
        try:
            if session is not None and path.identity() != session.identity:
                path.close()
                self.doubted = True
        except ConnectionLost as exc:
            # A pooled path that does not answer says nothing about the direct one.
            _logger.debug("The pooled path does not answer: %s", exc)

    def _serve(
        self, session: Session, seconds: float = 3600.0, until: Callable[[], bool] = lambda: False
    ) -> None:
        """Pass on what arrives, and see that heartbeats are answered, for so long or until a condition holds.

        :raises ConnectionLost: if the connection is lost
        """
        deadline = runtime.monotonic() + seconds
        while not self.stopping.is_set() and not until():
            now = runtime.monotonic()
            if now >= deadline:
                return
            if now >= self._beat_at:
                self._beat(session)
            elif session.link.wait(min(self._beat_at, deadline) - now):
                self._receive(session.link)

    def _receive(self, link: Link) -> None:
        """Pass on what has arrived."""
        busy = runtime.monotonic() - self._read_at < self.CLOSE_SECONDS
        for notification in link.receive():
            channel, payload = notification.channel, notification.payload
            if channel == self._channels[0]:
                self._token = None if payload == self._token else self._token
                continue
            self.received += 1
            self.last_received = runtime.wall_clock()
            if self.subscribers.accept(channel, payload, self._report_malformed):
                self.loop_connection.deliver(channel, payload)
        if busy:
            runtime.sleep(self.PAUSE_SECONDS)
        self._read_at = runtime.monotonic()

    def _beat(self, session: Session) -> None:
        """Ask the server for a sign of life, and which LISTENs stand. A pooler has to answer only."""
        every, sent = self.settings.heartbeat_seconds, runtime.monotonic()
        self._beat_at = sent + every * runtime.uniform(*self.BEATS)
        try:
            rows = session.link.query("SELECT 1" if session.pooler else HEARTBEAT, timeout=every * self.ANSWER)
        except TimedOut:
            raise ConnectionLost(f"no heartbeat was answered within {every * self.ANSWER:g} s, the path is silent")
        self.round_trip = runtime.monotonic() - sent
        missing = set(self._channels) - {channel for channel, in rows}
        if missing and not session.pooler:
            raise ConnectionLost(f"the LISTEN was removed ({', '.join(sorted(missing))})")
        self._receive(session.link)  # what came along with the answer
        self.recovery.step_inline()
        notifier.close_idle()

    def _unsubscribe(self, link: Link) -> None:
        """Leave no LISTEN behind in the server connections that a pooler gives to others."""
        try:
            for _turn in range(10):  # each may be another server connection
                for channel in self._channels:
                    link.query(f"UNLISTEN {_quoted(channel)}")
        except ConnectionLost:
            pass  # its end ends the LISTEN, or the pooler's server connection will

    # -- reports -------------------------------------------------------------------------------------------------

    def _report_malformed(self, channel: str, payload: str) -> None:
        self.malformed += 1
        if self._throttle.due("malformed"):
            count, self._malformed_logged = self.malformed - self._malformed_logged, self.malformed
            _logger.warning(
                "Ignored %d malformed notification(s) on %s since the last such line, the latest: %.80s. A role that"
                " may connect to the database sends them; the bus goes on.",
                count, channel, ascii(payload[:80]),
            )

    def report_defect(self) -> None:
        """Log the exception that is being handled, once a minute."""
        if self._throttle.due("defect"):
            _logger.exception("The %s listener failed and goes on.", self.subscribers.name)


def _quoted(channel: str) -> str:
    return '"' + channel.replace('"', '""') + '"'
