# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The listener: one thread that holds the direct connection and goes round its states.

Contract: whatever happens to PostgreSQL, the network, the settings or this process, the listener goes on trying, and
the loop that waits on its ``LoopConnection`` never sees an error. It is LISTENING only while it is known that NOTIFYs
reach it: each connection is proven by a NOTIFY through the pooled path, TCP and a heartbeat watch it, and whether the
pooled path leads to the same server is asked for as long as it lasts.
"""

import logging
import weakref
from typing import Any, Callable, List, Optional

from . import endpoints, errors, notifier, runtime, state
from .errors import ConnectionLost
from .loop_connection import LoopConnection
from .pooled import PooledPath
from .session import Session
from .settings import Settings
from .state import CONNECTING, LISTENING, STOPPED, VERIFYING

_logger = logging.getLogger(__name__)

_all: Any = weakref.WeakSet()
_lock = runtime.Lock()  # a set may not grow while it is read


def listeners() -> "List[Listener]":
    """Return the listeners of this process that run."""
    with _lock:
        return [listener for listener in _all if listener.state.phase != STOPPED]


class Listener:
    """Keep one LISTENing connection.

    :param subscribers: whom notifications are for, see ``dispatcher.Subscribers`` and ``cron.Subscribers``
    :param settings: those of this process if not given

    :ivar state: a ``State``, to be read once
    :ivar changed: set whenever the state changes
    """

    PROOF_SECONDS = 3.0  # how long a NOTIFY may take from the pooled path to here
    START_SECONDS = 10.0  # so long attempts are quick after the start; after a loss for a minute
    # A cluster with a thousand notifications a second would wake this process as often. Where one reading follows
    # so closely on another, the next waits a little.
    CLOSE_SECONDS, PAUSE_SECONDS = 0.002, 0.005
    begun = False

    def __init__(self, subscribers: Any, settings: Optional[Settings] = None) -> None:
        self.subscribers = subscribers
        self.settings = settings or Settings.from_odoo()
        self.loop_connection = LoopConnection(on_close=self.stop)
        self.state = state.initial()
        self.changed, self.stopping = runtime.Event(), runtime.Event()
        self.session: Optional[Session] = None
        self.received = self.malformed = 0
        self.degraded_seconds = 0.0  # in all, without the time since state.lost_at
        self.last_received: Optional[float] = None  # runtime.wall_clock()
        self.recovery = subscribers.recovery(self)
        self.path = PooledPath(self.settings.connect_timeout_seconds)
        self._channels = ["bus_alt_connection_" + runtime.token()]  # the first is for the proof
        self._rejected: List[str] = []  # hosts that NOTIFYs did not reach, latest last
        self._token: Optional[str] = None  # that has not arrived yet
        self._doubted = False  # whether NOTIFYs may go elsewhere now
        self._backoff = runtime.Backoff(self.START_SECONDS)  # of connects; a new one when LISTENING ends
        self._read_at = 0.0
        self._log = state.StateLog(subscribers.name, self.settings.poll_seconds)
        self._throttle = runtime.Throttle()
        with _lock:
            _all.add(self)

    # -- what the loop's thread calls ----------------------------------------------------------------------------

    def listen(self, channel: str) -> None:
        """Add a channel; after ``begin`` the loop connection receives what arrives there."""
        self._channels.append(channel)

    def begin(self) -> None:
        """Begin to listen, as LISTEN does when its transaction commits."""
        if len(self._channels) > 1 and not self.begun:
            self.begun = True
            runtime.start_thread(self.run, self.subscribers.name)
            self.recovery.start()

    def stop(self) -> None:
        """End, without waiting for it."""
        self.stopping.set()
        self.changed.set()
        session = self.session
        if session is not None:
            session.link.interrupt()
        if not self.begun:
            self.enter(STOPPED)

    # -- the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Connect, verify and listen until ``stop``."""
        while not self.stopping.is_set():
            problem = None
            try:
                self._listen(self._connect())
            except ConnectionLost as exc:
                problem = None if self.stopping.is_set() else exc  # what stop interrupts is not lost
            except Exception:  # a defect of this addon must not silence the bus
                self.report_defect()
            self.enter(CONNECTING, problem=problem)
            self._pause(self._backoff.next())
        self.path.close()
        self.enter(STOPPED)

    def enter(self, phase: str, endpoint: Optional[str] = None, problem: Optional[ConnectionLost] = None) -> None:
        """Replace the state: the only place where it changes, and where its change is logged."""
        before = self.state
        self.state = after = state.successor(before, phase, endpoint, problem)
        if before.lost_at is None and after.lost_at is not None:
            self._backoff = runtime.Backoff()
        elif before.lost_at is not None and after.lost_at is None:
            self.degraded_seconds += after.since - before.lost_at
        self._log.change(before, after)
        self.changed.set()

    def _pause(self, seconds: float) -> None:
        """Wait for so long, or for ``stop``."""
        self.recovery.step_inline()
        self.stopping.wait(seconds)

    def _connect(self) -> Session:
        """Return a session on the first endpoint that accepts a LISTEN; the rejected ones are tried last."""
        problems = []
        hosts = {endpoints.shown(info): info for info in endpoints.resolve(endpoints.direct(self.settings))}
        rank = {host: number for number, host in enumerate(self._rejected)}
        for host in sorted(hosts, key=lambda host: rank.get(host, -1)):
            self.recovery.step_inline()
            try:
                session = Session(hosts[host], self.settings, self.subscribers.name, self._channels)
                session.replaceable = len(hosts) > 1
                return session
            except ConnectionLost as exc:
                passing = exc.cause.name == "standby" and len(hosts) > 1  # a failover may go on
                problems.append(ConnectionLost(exc.reason, host, errors.NO_PRIMARY if passing else exc.cause))
        # Of several endpoints the one to be mended is named, not the one that is just away.
        raise max(problems, key=lambda problem: problem.cause.level)

    def _listen(self, session: Session) -> None:
        """Verify and listen until the connection is lost, which is raised."""
        self.session = session
        self.enter(VERIFYING, endpoint=session.endpoint)
        try:
            while not self.stopping.is_set():
                self._verify(session)
                self._rejected = [host for host in self._rejected if host != session.host]
                self._doubted = False
                self.enter(LISTENING)
                self.recovery.step_inline()
                self._serve(session, until=lambda: self._doubted)
                self.enter(VERIFYING)
        except ConnectionLost as exc:
            session.close(unlisten=not self.stopping.is_set())
            raise ConnectionLost(exc.reason, exc.endpoint or session.host, exc.cause)
        finally:
            self.session = None
            session.close()

    def _verify(self, session: Session) -> None:
        """Return once a NOTIFY that took the pooled path has arrived, or with ``stop``.

        :raises ConnectionLost: if it does not arrive: then the session is of no use
        """
        backoff = runtime.Backoff()
        while not self.stopping.is_set():
            token = self._token = runtime.token()
            try:
                notifying = self.path.notify(self.subscribers.notify_function(), self._channels[0], token)
                break
            except ConnectionLost as exc:
                verb, cause = ("refuses them", errors.REFUSED) if exc.refused else ("does not answer", exc.cause)
                problem = ConnectionLost(f"Odoo's own db_host {verb} ({exc.reason})", cause=cause)
                self.enter(VERIFYING, problem=problem)
            self._serve(session, seconds=max(backoff.next(), backoff.FIRST))
        self._serve(session, seconds=self.PROOF_SECONDS, until=lambda: self._token is None)
        if self._token is None or self.stopping.is_set():
            return
        problem = errors.undelivered(session.host, session.identity, notifying, session.pooler)
        if session.replaceable and session.host not in self._rejected:
            problem.cause = problem.cause._replace(level=logging.WARNING, remedy="Trying the next endpoint.")
        elif problem.cause in (errors.OTHER_SERVER, errors.POOLER):
            problem.reason += self.path.reported_address()
        self._rejected = [host for host in self._rejected if host != session.host] + [session.host]
        raise problem

    def check_path(self, path: PooledPath) -> None:
        """Ask whether the pooled path leads to the server that this listens on; if not, have it verified anew."""
        session = self.session
        try:
            if session is not None and path.identity() != session.identity:
                self._doubted = True
        except ConnectionLost as exc:
            # A pooled path that does not answer says nothing about the direct one.
            _logger.debug("The pooled path does not answer: %s", exc)

    def _serve(self, session: Session, seconds: float = 3600.0, until: Callable[[], bool] = lambda: False) -> None:
        """Pass on what arrives, and see that heartbeats are answered, for so long or until a condition holds.

        :raises ConnectionLost: if the connection is lost
        """
        deadline = runtime.monotonic() + seconds
        while not (self.stopping.is_set() or until() or runtime.monotonic() >= deadline):
            if runtime.monotonic() >= session.beat_at:
                session.beat()
                self.recovery.step_inline()
                notifier.close_idle()
            elif not session.link.wait(min(session.beat_at, deadline) - runtime.monotonic()):
                continue
            self._receive(session)

    def _receive(self, session: Session) -> None:
        """Pass on what has arrived."""
        close = runtime.monotonic() - self._read_at < self.CLOSE_SECONDS
        for notification in session.link.receive():
            channel, payload = notification.channel, notification.payload
            if channel == self._channels[0]:
                self._token = None if payload == self._token else self._token
                continue
            self.received += 1
            self.last_received = runtime.wall_clock()
            if self.subscribers.accept(channel, payload, self._report_malformed):
                self.loop_connection.deliver(channel, payload)
        if close:
            runtime.sleep(self.PAUSE_SECONDS)
        self._read_at = runtime.monotonic()

    def _report_malformed(self, channel: str, payload: str) -> None:
        self.malformed += 1
        if self._throttle.due("malformed"):
            _logger.warning(
                "Ignored a malformed notification on %s, number %d: %.80s. A role that may connect to the database"
                " sends them; the bus goes on.",
                channel, self.malformed, ascii(payload[:80]),
            )

    def report_defect(self) -> None:
        """Log the exception that is being handled, once a minute."""
        if self._throttle.due("defect"):
            _logger.exception("The %s listener failed and goes on.", self.subscribers.name)
