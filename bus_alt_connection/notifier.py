# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""How a NOTIFY leaves Odoo: on one connection per process that is kept, through Odoo's own address.

Contract: statements are executed as Odoo gave them. A NOTIFY that cannot leave is no error of the caller, whose work
is committed: it is queued, and leaves in its order as soon as it can, sent by a thread that exists only while
something is queued. The caller waits for one connect timeout at most, and not at all while others are queued. Only the
server's refusal of the statement itself (a payload that is too long) is raised. What is lost with its process, or
dropped because too many are queued, is found in the table. A NOTIFY may leave twice, which does no harm.
"""

import collections
import functools
import logging
import os
from typing import Any, Dict, List, Optional, Tuple

from psycopg2 import extensions

from . import endpoints, runtime
from .errors import ConnectionLost
from .link import Link, open_first
from .settings import Settings

_logger = logging.getLogger(__name__)

Statement = Tuple[Any, Any]  # a query and its parameters, as psycopg2 takes them

# The same for all processes: a pooler that gives a server connection from one client to the next changes its name
# first where theirs differ, and it would keep the pid of whoever had it last.
APPLICATION_NAME = "bus_alt_connection notify"


class Notifier:
    """The sending half of one process. Any of its threads or greenlets may send.

    :param timeout: seconds that a caller waits at most

    :ivar sent: NOTIFYs that left
    :ivar dropped: NOTIFYs that will not leave any more
    :ivar connections: that were made
    """

    IDLE_SECONDS = 60.0
    LIMIT = 1000  # NOTIFYs that are queued, each of up to 8 kB

    def __init__(self, timeout: float) -> None:
        self.sent = self.dropped = self.connections = 0
        self._timeout = timeout
        self._using = runtime.Lock()  # the link
        self._link: Optional[Link] = None
        self._used_at = 0.0  # runtime.monotonic() of its latest NOTIFY
        self._queueing = runtime.Lock()  # the next two; never held while something is sent
        self._queue: Any = collections.OrderedDict()  # text -> statement: equal ones are one
        self._retrying = False  # whether the thread exists
        self._throttle = runtime.Throttle()

    @property
    def waiting(self) -> int:
        """How many NOTIFYs are queued."""
        return len(self._queue)

    def send(self, statements: List[Statement]) -> None:
        """NOTIFY; what cannot leave now is queued.

        :raises psycopg2.Error: if the server refuses one of the statements; the others leave
        """
        deadline, refusal, reason = runtime.monotonic() + self._timeout, None, ""
        left = collections.deque(statements)
        if not self._queue and self._using.acquire(timeout=self._timeout):
            try:
                while left and not self._queue:  # another thread, for which this one waited, may have queued some
                    refusal = self._transmit(left[0], deadline) or refusal
                    left.popleft()
            except ConnectionLost as exc:
                reason = str(exc)
            finally:  # also if the caller is made to end meanwhile
                self._using.release()
                self._enqueue(left, reason)
        else:
            self._enqueue(left, "" if self._queue else "another one waits for its answer")
        if refusal is not None:
            raise refusal

    # -- the connection, to be used with the lock ------------------------------------------------------------------

    def _transmit(self, statement: Statement, deadline: float) -> Optional[BaseException]:
        """Send on the connection that is kept, else on a new one.

        :return: the refusal of the statement
        :raises ConnectionLost: if it cannot leave
        """
        for kept in (True, False):
            try:
                if kept:
                    if self._link is None:
                        continue
                    self._link.receive()  # fails if the other side has closed it; does not wait
                else:
                    self._link = self._open(deadline)
                seconds = _left(deadline)
                self._link.query(*statement, timeout=seconds, server_limit=seconds * 0.9)
                self.sent += 1
                self._used_at = runtime.monotonic()
                return None
            except ConnectionLost as exc:
                if exc.refused:
                    return exc.__cause__
                if self._link is None or not self._link.usable:
                    self.close()
                if not (kept and exc.broken and runtime.monotonic() < deadline):
                    raise
            except Exception as exc:
                return exc  # psycopg2 itself refuses it, such as text with a zero byte
            except BaseException:
                self.close()  # the caller is made to end: an answer that nobody has read may still come
                raise
        return None

    def _open(self, deadline: float) -> Link:
        info = dict(endpoints.pooled(), application_name=APPLICATION_NAME)
        host_timeout = self._timeout / 6
        if extensions.libpq_version() >= 120000:
            # A host that takes no packets any more is given up, one that is slow to answer is not.
            info["tcp_user_timeout"] = int(host_timeout * 1000)
        try:
            link = open_first(endpoints.resolve(info), _left(deadline), host_timeout)
        except ConnectionLost as exc:
            raise ConnectionLost(exc.reason, endpoints.shown(info)) from exc.__cause__
        self.connections += 1
        return link

    def close(self) -> None:
        """Close the connection; the next NOTIFY makes another."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def close_idle(self, seconds: float = 0.0) -> None:
        """Close the connection if it is unused for IDLE_SECONDS, or will be within so many seconds.

        Called by whoever runs anyway: a thread of its own would cost each worker 72 MB of address space, which Odoo's
        ``limit_memory_soft`` counts.
        """
        if self._link is not None and runtime.monotonic() + seconds >= self._used_at + self.IDLE_SECONDS:
            if self._using.acquire(False):
                self.close()
                self._using.release()

    # -- what is queued --------------------------------------------------------------------------------------------

    def _enqueue(self, statements: Any, reason: str) -> None:
        if not statements:
            return
        with self._queueing:
            for statement in statements:
                self._queue.setdefault(repr(statement), statement)
            while len(self._queue) > self.LIMIT:
                self._queue.popitem(last=False)
                self.dropped += 1
            start, self._retrying = not self._retrying, True
        if reason and self._throttle.due("waiting"):
            _logger.warning("Cannot send a NOTIFY: %s. It is queued, as are all that follow. Retrying.", reason)
        if self.dropped and self._throttle.due("dropped"):
            text = "%d NOTIFYs were dropped so far: more than %d are queued. The table still has their notifications."
            _logger.warning(text, self.dropped, self.LIMIT)
        if start:
            try:
                runtime.start_thread(self._retry, "notifier")
            except RuntimeError as exc:  # the system gives none; the next NOTIFY tries again
                self._retrying = False
                if self._throttle.due("thread"):
                    _logger.warning("Queued NOTIFYs are not retried until the next NOTIFY: %s.", exc)

    def _retry(self) -> None:
        """Send what is queued, until nothing is."""
        backoff = runtime.Backoff()
        while True:
            with self._queueing:
                if not self._queue:
                    self._retrying = False
                    return
                # Taken out while it is sent: an equal one that is queued meanwhile is for rows that it may not show.
                text, statement = self._queue.popitem(last=False)
            try:
                with self._using:
                    refusal = self._transmit(statement, runtime.monotonic() + self._timeout)
            except ConnectionLost as exc:
                if self._throttle.due("waiting"):
                    _logger.warning("Cannot send queued NOTIFYs: %s. Retrying.", exc)
                with self._queueing:
                    self._queue[text] = statement
                    self._queue.move_to_end(text, last=False)
                runtime.sleep(max(backoff.FIRST, backoff.next()))
                continue
            if refusal is not None:
                self.dropped += 1
                if self._throttle.due("refused"):
                    _logger.warning("PostgreSQL refused a queued NOTIFY, which is dropped: %s.", refusal)
            if not self._queue:
                _logger.info("All queued NOTIFYs have been sent.")


def _left(deadline: float) -> float:
    """Return the seconds until then, at least enough for one that answers at once."""
    return max(0.1, deadline - runtime.monotonic())


# pid -> notifier. One that was inherited by a fork stays here, unused and never closed: closing it would end the
# parent's session. psycopg2 itself leaves it alone when the process ends.
_notifiers: Dict[int, Notifier] = {}


def get_notifier() -> Notifier:
    """Return the notifier of this process."""
    pid = os.getpid()
    if pid not in _notifiers:
        _notifiers.setdefault(pid, Notifier(Settings.from_odoo().connect_timeout_seconds))
    return _notifiers[pid]


def close_idle(seconds: float = 0.0) -> None:
    """Close this process's connection if it is idle, see ``Notifier.close_idle``."""
    notifier = _notifiers.get(os.getpid())
    if notifier is not None:
        notifier.close_idle(seconds)


CRON_SECONDS = 70.0  # between two rounds of a cron worker, at most


def patches(server: Any) -> List[Tuple[Any, str, Any]]:
    """Have prefork workers close their idle connection before they wait.

    :param server: Odoo's module of its servers
    """
    check_limits, cron_worker = server.Worker.check_limits, server.WorkerCron

    @functools.wraps(check_limits)
    def check_limits_and_connection(self: Any) -> Any:
        # It waits next: an HTTP worker for a request, a cron worker for a minute and some seconds.
        close_idle(CRON_SECONDS if isinstance(self, cron_worker) else self.multi.beat)
        return check_limits(self)

    return [(server.Worker, "check_limits", check_limits_and_connection)]
