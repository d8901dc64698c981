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

import odoo.service.server

from . import endpoints, runtime
from .errors import ConnectionLost
from .pooled import PooledPath
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
    :ivar path: its connection
    :ivar queue: text -> statement: equal ones are one
    :ivar retrying: whether a thread sends them, which has one in hand
    """

    IDLE_SECONDS = 60.0
    LIMIT = 1000  # NOTIFYs that are queued, each of up to 8 kB

    def __init__(self, timeout: float) -> None:
        self.sent = self.dropped = 0
        self.queue: Any = collections.OrderedDict()
        self.retrying = False
        self._queueing = runtime.Lock()  # these two; never held while something is sent
        self.path = PooledPath(timeout, APPLICATION_NAME, always=True)
        self._used_at = 0.0  # runtime.monotonic() of its latest NOTIFY
        self._using = runtime.Lock()  # these two
        self._timeout = timeout
        self._throttle = runtime.Throttle()

    def send(self, statements: List[Statement]) -> None:
        """NOTIFY; what cannot leave now is queued.

        :raises Exception: if the server or psycopg2 refuses one of the statements; the others leave
        """
        deadline, left, refusal = runtime.monotonic() + self._timeout, list(statements), None
        try:
            while left and not (self.retrying or self.queue):
                refusal = self._transmit(left[0], max(0.1, deadline - runtime.monotonic())) or refusal
                del left[0]
        except ConnectionLost as exc:
            self._warn("Cannot send a NOTIFY: %s. It is queued, as are all that follow. Retrying.", exc)
        finally:  # also if the caller is made to end meanwhile
            if left:
                self._enqueue(left)
        if refusal is not None:
            raise refusal

    def close_idle(self, seconds: float = 0.0) -> None:
        """Close the connection if it is unused for IDLE_SECONDS, or will be within so many seconds.

        Called by whoever runs anyway: a thread would cost each worker 72 MB of address space, which Odoo's
        ``limit_memory_soft`` counts.
        """
        if runtime.monotonic() + seconds >= self._used_at + self.IDLE_SECONDS and self._using.acquire(False):
            self.path.close()
            self._using.release()

    def _transmit(self, statement: Statement, seconds: float) -> Optional[BaseException]:
        """Send one.

        :return: the refusal of the statement, by the server or by psycopg2
        :raises ConnectionLost: if it cannot leave
        """
        deadline = runtime.monotonic() + seconds
        if not self._using.acquire(timeout=seconds):
            raise ConnectionLost("another one waits for its answer")
        try:
            self.path.query(endpoints.system_database(), *statement, seconds=deadline - runtime.monotonic())
            self.sent += 1
            self._used_at = runtime.monotonic()
            return None
        except ConnectionLost as exc:
            if not exc.refused:
                raise
            return exc.__cause__
        except Exception as exc:  # a parameter that psycopg2 cannot write, such as text with a zero byte
            return exc
        finally:
            self._using.release()

    def _enqueue(self, statements: List[Statement]) -> None:
        with self._queueing:
            self.queue.update((repr(each), each) for each in statements)
            while len(self.queue) > self.LIMIT:
                self.queue.popitem(last=False)
                self.dropped += 1
                self._warn("More than %d NOTIFYs are queued: the oldest are dropped.", self.LIMIT)
            start, self.retrying = not self.retrying, True
        try:
            if start:
                runtime.start_thread(self._retry, "notifier")
        except RuntimeError as exc:  # the system gives none; the next NOTIFY tries again
            self.retrying = False
            self._warn("Queued NOTIFYs are not retried until the next NOTIFY: %s.", exc)

    def _retry(self) -> None:
        """Send what is queued, until nothing is."""
        backoff = runtime.Backoff()
        while True:
            with self._queueing:
                if not self.queue:
                    self.retrying = False
                    return
                # Taken out while it is sent: an equal one that is queued meanwhile is for rows that it may not show.
                text, statement = self.queue.popitem(last=False)
            try:
                refusal = self._transmit(statement, self._timeout)
                if refusal is not None:
                    self.dropped += 1
                    self._warn("A queued NOTIFY was refused and is dropped: %s.", refusal)
                if not self.queue:
                    _logger.info("All queued NOTIFYs have been sent.")
            except ConnectionLost as exc:
                with self._queueing:
                    self.queue[text] = statement
                    self.queue.move_to_end(text, last=False)
                self._warn("Cannot send queued NOTIFYs: %s. Retrying.", exc)
                runtime.sleep(max(backoff.FIRST, backoff.next()))

    def _warn(self, text: str, value: Any) -> None:
        # Of what cannot leave, the sender and the retry thread say the same: one line a minute for both.
        if self._throttle.due("waiting" if text.startswith("Cannot send") else text):
            _logger.warning(text, value)


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


def patches() -> List[Tuple[Any, str, Any]]:
    """Have prefork workers close their idle connection before they wait."""
    server = odoo.service.server
    check_limits, cron_worker = server.Worker.check_limits, getattr(server, "WorkerCron", ())

    @functools.wraps(check_limits)
    def check_limits_and_connection(self: Any) -> Any:
        # It waits next: an HTTP worker for a request, a cron worker for a minute and some seconds.
        close_idle(CRON_SECONDS if isinstance(self, cron_worker) else self.multi.beat)
        return check_limits(self)

    return [(server.Worker, "check_limits", check_limits_and_connection)]
