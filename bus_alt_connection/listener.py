# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The listener: one thread that holds the direct connection and goes round its states.

Contract: whatever happens to PostgreSQL, the network, the settings or this process, the listener
goes on trying, and the loop that waits on its ``LoopConnection`` never sees an error. It is
LISTENING only while it is known that NOTIFYs reach it; that is checked for as long as it runs.
"""

import logging
import random
import threading
import time
import weakref
from typing import Any, Awaitable, Dict, List, Optional

from . import endpoints, errors, state
from .backoff import Backoff, Throttle
from .errors import ConnectionLost
from .loop_connection import LoopConnection
from .recovery import Recovery
from .session import Session
from .settings import Settings
from .state import CATCHING_UP, CONNECTING, LISTENING, STOPPED, VERIFYING, StateLog
from .tasks import Signal, Tasks, sleep

_logger = logging.getLogger(__name__)

_all: Any = weakref.WeakSet()
_lock = threading.Lock()  # a set may not grow while it is read


def listeners() -> "List[Listener]":
    """The listeners of this process that run."""
    with _lock:
        return [listener for listener in _all if listener.state.phase != STOPPED]


class Listener(threading.Thread):
    """Keeps one LISTENing connection.

    :param subscribers: who is notified, see ``dispatcher.Subscribers`` and ``cron.Subscribers``
    :param settings: those of this process if not given

    :ivar state: a ``state.State``, to be read once
    """

    RETRY_SECONDS = 0.6  # at most between attempts, where waiting may help
    PROOF_SECONDS = 3.0  # how long a NOTIFY may take from the pooled path to here
    CHECK_SECONDS = (20, 25)  # between questions whether the pooled path leads where it did
    LOOK_SECONDS = (20, 25)  # between looks at the table while LISTENING
    DOUBT_SECONDS = 10.0  # the same after one that found what a subscriber lacked
    PAUSE_SECONDS = 0.05  # between looks, at least
    GRACE_SECONDS = 1.0  # after a loss until the first poll: most losses are over before
    POLL_SHARE = (0.8, 1.0)  # of the time to the next poll: those that lost one server poll apart

    def __init__(self, subscribers: Any, settings: Optional[Settings] = None) -> None:
        super().__init__(name=f"bus_alt_connection.{subscribers.name}", daemon=True)
        self.subscribers = subscribers
        self.settings = settings or Settings.of_odoo()
        self.loop_connection = LoopConnection(on_close=self.stop)
        self.recovery = Recovery(subscribers, self.settings, self.loop_connection)
        self.state = state.initial(time.monotonic())
        self.received = self.malformed = 0
        self.degraded_seconds = 0.0  # in all, without the time since state.lost_at
        self.last_received: Optional[float] = None  # time.time()
        self.session: Optional[Session] = None
        self._log = StateLog(subscribers.name, self.settings.poll_seconds)
        self._throttle = Throttle()
        self._malformed_logged = 0
        self._channels = ["bus_alt_connection_" + "".join(random.sample("abcdefghijklmnop", 12))]
        self._rejected: List[str] = []  # endpoints that NOTIFYs did not reach, latest last
        self._stopping = False
        self._tasks: Optional[Tasks] = None
        self._changed = Signal()
        self._woken_at_loss = 0  # recovery.woken when LISTENING ended
        self._poll_share = random.uniform(*self.POLL_SHARE)
        with _lock:
            _all.add(self)

    # -- what the loop's thread calls ---------------------------------------------------------

    def listen(self, channel: str) -> None:
        """Name a channel; from ``begin`` on what arrives there is found in the loop connection."""
        self._channels.append(channel)

    def begin(self) -> None:
        """Begin to listen, as LISTEN does when its transaction commits."""
        if len(self._channels) > 1 and self.ident is None:
            self.start()

    def stop(self) -> None:
        """End, without waiting for it."""
        self._stopping = True
        tasks = self._tasks
        if tasks is not None:
            tasks.stop()
        if self.ident is None:
            self.enter(STOPPED)

    # -- the thread ---------------------------------------------------------------------------

    def run(self) -> None:
        while not self._stopping:
            try:
                self._run()
            except Exception:  # too many open files, or a defect: the bus must not fall silent
                self.enter(CONNECTING)
                self._defect()
                time.sleep(1)
        self.enter(STOPPED)

    def _run(self) -> None:
        tasks = self._tasks = Tasks()
        try:
            if not self._stopping:
                tasks.start(self._look_for_ever(tasks))
                tasks.run(self._connect_for_ever(tasks))
        finally:
            self._tasks = None
            tasks.close()
            self.recovery.close()

    def enter(
        self, phase: str, endpoint: Optional[str] = None, problem: Optional[ConnectionLost] = None
    ) -> None:
        """Replace the state: the only place where it changes, and where its change is logged."""
        now, before = time.monotonic(), self.state
        self.state = after = state.entered(before, phase, now, endpoint, problem)
        if before.lost_at is not None and after.lost_at is None:
            self.degraded_seconds += now - before.lost_at
        if before.lost_at is None:
            self._woken_at_loss = self.recovery.woken
        self._log.change(before, after, now, self.recovery.woken - self._woken_at_loss)
        self._changed.set()

    # -- connect and serve --------------------------------------------------------------------

    async def _connect_for_ever(self, tasks: Tasks) -> None:
        backoff = Backoff(self.RETRY_SECONDS)
        while True:
            begun = time.monotonic()
            slow = False
            try:
                await self._hold_a_session(tasks)
            except ConnectionLost as exc:
                self.enter(CONNECTING, problem=exc)
                slow = exc.cause.slow
            except Exception:  # a defect of this addon must not silence the bus
                self._defect()
                self.enter(CONNECTING)
            await sleep(max(0.0, begun + backoff.next(slow) - time.monotonic()))

    async def _hold_a_session(self, tasks: Tasks) -> None:
        """Connect, LISTEN, and pass on what arrives until the connection is lost."""
        session = self.session = await self._connect()
        self.enter(VERIFYING, endpoint=session.endpoint)
        # Where a LISTEN lasts through a pooler, it pools by session.
        self.recovery.keep_connections(not session.pooler)
        proving = tasks.start(self._prove_for_ever(tasks, session))
        try:
            await session.serve(tasks, self._arrived)
        except ConnectionLost as exc:
            problem = ConnectionLost(exc.reason, exc.endpoint or session.endpoint, exc.cause)
            if session.pooler:
                proving.cancel()
                self.enter(CONNECTING, problem=problem)
                await self._unlisten(session)
            raise problem
        finally:
            self.session = None
            proving.cancel()
            session.close()

    async def _connect(self) -> Session:
        """A session on the first endpoint that takes a LISTEN."""
        problems = []
        hosts = {endpoints.shown(info): info for info in await self._endpoints()}
        rank = {host: number for number, host in enumerate(self._rejected)}
        for host in sorted(hosts, key=lambda host: rank.get(host, -1)):
            try:
                session = await Session.open(
                    hosts[host], self.settings, self.subscribers.name, self._channels
                )
                session.replaceable = self.settings.auto or len(hosts) > 1
                return session
            except ConnectionLost as exc:
                passing = exc.cause.name == "standby" and len(hosts) > 1  # a failover goes on
                cause = errors.NO_PRIMARY if passing else exc.cause
                problems.append(ConnectionLost(exc.reason, host, cause))
        # Of several endpoints the one to be mended is named, not the one that is just away.
        worst = max(problems, key=lambda problem: problem.cause.level)
        worst.cause = worst.cause._replace(slow=all(problem.cause.slow for problem in problems))
        raise worst

    async def _endpoints(self) -> List[Dict[str, Any]]:
        address = None
        if self.settings.auto and not self.settings.refused:
            try:
                address = await self.recovery.address()
            except ConnectionLost as exc:
                asked = endpoints.shown(endpoints.pooled()) + ", to ask for PostgreSQL's address"
                raise ConnectionLost(exc.reason, asked, exc.cause)
        return endpoints.direct(self.settings, address)

    async def _unlisten(self, session: Session) -> None:
        try:
            await session.unlisten()
        except ConnectionLost:
            pass  # its end ends the LISTEN, or the pooler's server connection will

    def _arrived(self, payloads: Dict[str, List[str]]) -> None:
        """Pass on what arrived together on the channels that upstream listens to."""
        self.last_received = time.time()
        for channel, arrived in payloads.items():
            self.received += len(arrived)
            accepted = self.subscribers.accept(arrived)
            for payload in accepted.payloads:
                self.loop_connection.deliver(channel, payload)
            self.recovery.heard(accepted.keys)
            if accepted.malformed:
                self._report_malformed(channel, accepted.malformed)

    def _report_malformed(self, channel: str, payloads: List[str]) -> None:
        self.malformed += len(payloads)
        if self._throttle.due("malformed"):
            count, self._malformed_logged = self.malformed - self._malformed_logged, self.malformed
            _logger.warning(
                "Ignored %d malformed notification(s) on %s since the last such line, the latest:"
                " %.80s. A role that may connect to the database sends them; the bus goes on.",
                count,
                channel,
                ascii(payloads[-1][:80]),
            )

    # -- verify, catch up, watch --------------------------------------------------------------

    async def _prove_for_ever(self, tasks: Tasks, session: Session) -> None:
        """VERIFYING → CATCHING_UP → LISTENING, and back to VERIFYING when in doubt."""
        while True:
            try:
                await self._verify(session)
                self.enter(CATCHING_UP)
                lost_at = self.state.lost_at or time.monotonic()
                await self.recovery.catch_up(tasks, time.monotonic() - lost_at)
                self._rejected = [host for host in self._rejected if host != session.host]
                self.enter(LISTENING)
                await self._watch(session)
            except Exception:  # a defect of this addon must not silence the bus
                self._defect()
                await sleep(self.settings.poll_seconds)
            self.enter(VERIFYING)

    async def _verify(self, session: Session) -> None:
        """Return once a NOTIFY that took the pooled path has arrived; else have the session end."""
        backoff = Backoff(self.RETRY_SECONDS)
        while True:
            begun, refused = time.monotonic(), False
            try:
                notifying = await self.recovery.notify(session.private, session.expect())
                break
            except ConnectionLost as exc:
                refused = exc.refused
                if refused:
                    reason = f"Odoo's own db_host refuses them ({exc.reason})"
                    self.enter(VERIFYING, problem=ConnectionLost(reason, cause=errors.REFUSED))
                # Else the pooled path is dark. It concerns all of Odoo, which says so itself.
                _logger.debug("The pooled path does not answer: %s", exc)
            # One that hangs and does not refuse may be overrun, by a thousand that do the same.
            hung = time.monotonic() - begun
            pause = backoff.next(refused)
            await sleep(max(pause, backoff.FIRST, random.uniform(0.5, 1.5) * hung))
        if await session.proved(self.PROOF_SECONDS):
            return
        problem = errors.undelivered(
            session.host, session.identity, notifying, session.pooler, self.PROOF_SECONDS
        )
        untried = session.replaceable and session.host not in self._rejected
        self._rejected = [host for host in self._rejected if host != session.host]
        self._rejected.append(session.host)
        if untried:
            problem.cause = problem.cause._replace(
                level=logging.WARNING, slow=False, remedy="Trying the next endpoint."
            )
        elif problem.cause in (errors.OTHER_SERVER, errors.POOLER):
            try:
                host, port = await self.recovery.address()
                problem.reason += (
                    f" (PostgreSQL reports its address as imdispatcher_db_host = {host},"
                    f" imdispatcher_db_port = {port})"
                )
            except ConnectionLost:
                pass  # only the hint is missing
        session.reject(problem)
        await sleep(3600)  # the session ends now, and this with it

    async def _watch(self, session: Session) -> None:
        """Return once the pooled path leads to another server or database."""
        while True:
            await sleep(random.uniform(*self.CHECK_SECONDS))
            try:
                if await self.recovery.identity() != session.identity:
                    return
            except ConnectionLost as exc:
                # A pooled path that does not answer says nothing about the direct one.
                _logger.debug("The pooled path does not answer: %s", exc)

    # -- poll, and look for what nobody was told of -------------------------------------------

    async def _look_for_ever(self, tasks: Tasks) -> None:
        pause, again_at = 0.0, 0.0
        while True:
            now, current = time.monotonic(), self.state
            listening = current.lost_at is None
            if listening:
                if self.recovery.in_doubt:
                    pause = min(pause, self.DOUBT_SECONDS)
                due = self.recovery.looked_at + pause
                due = min(due, again_at) if self.recovery.unanswered else due
            else:
                grace = current.lost_at + self._poll_share * self.GRACE_SECONDS
                due = max(grace, self.recovery.looked_at + self._poll_share * self.settings.poll_seconds)
            if due > now:
                # A look that is not over yet may bring it forward.
                await self._changed.wait(min(due - now, self.DOUBT_SECONDS / 2))
                continue
            again_at = now + self.settings.poll_seconds
            if not listening:
                look = self.recovery.poll(tasks, now - current.lost_at)
            elif now >= self.recovery.looked_at + pause:
                look = self.recovery.look(tasks)
                pause = random.uniform(*self.LOOK_SECONDS)
            else:
                look = self.recovery.look_again(tasks)
            tasks.start(self._guarded(look))  # not awaited: a database may take long to answer
            await sleep(self.PAUSE_SECONDS)

    async def _guarded(self, look: Awaitable) -> None:
        try:
            await look
        except Exception:  # a defect of this addon must not silence the bus
            self._defect()

    def _defect(self) -> None:
        if self._throttle.due("defect"):
            _logger.exception("The %s listener failed and goes on.", self.subscribers.name)
