# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""How a NOTIFY leaves Odoo: on a connection that is kept, through Odoo's own address.

Contract: what Odoo notifies (``imbus``, ``cron_trigger``) leaves on one connection per process,
opened by the first NOTIFY, closed after a minute without one. A NOTIFY that cannot leave is no
error of the caller, whose work is committed: it is kept, in its order, and leaves as soon as it
can, sent by a thread. It lives only meanwhile, and where no prefork worker closes the connection,
in threaded and evented servers, also until it has closed that. The caller waits for one connect
timeout at most, and not at all while others are kept. Only the server's refusal of the statement
itself (a payload that is too long) is raised. What is lost with its process, or dropped because too
many wait, is found in the table: a NOTIFY is only ever a hint, and one that arrives twice does no
harm.
"""

import atexit
import collections
import functools
import logging
import os
import re
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import psycopg2
from psycopg2 import extensions, sql

from .backoff import Backoff, Throttle
from .connection import BlockingConnection
from .errors import ConnectionLost, one_line

_logger = logging.getLogger(__name__)


class Notification(NamedTuple):
    function: str  # as it stands in SQL
    channel: str
    payload: str


# -- what is a NOTIFY ---------------------------------------------------------------------------

# 12 to 17; a channel without quotes is in lower case for PostgreSQL
NOTIFY = re.compile(r"\s*notify\s+(imbus|cron_trigger)\s*,\s*%s\s*;?\s*$", re.IGNORECASE)
# 17 on, and before where ODOO_NOTIFY_FUNCTION is set
SELECT = re.compile(
    r"\s*select\s+(\w+|\"(?:[^\"]|\"\")+\")\s*\(\s*'((?-i:imbus|cron_trigger))'\s*,\s*%s\s*\)\s*;?\s*$",
    re.IGNORECASE,
)
# The same in the constants of whoever sends it, whatever stands for the function there.
SENDS = re.compile(
    r"\bnotify\s+(imbus|cron_trigger)\b|\(\s*'(imbus|cron_trigger)'\s*,", re.IGNORECASE
)


def sends(code: Any) -> bool:
    """Whether a function sends NOTIFYs of Odoo's: one of them stands in its code."""
    return any(isinstance(each, str) and SENDS.search(each) for each in code.co_consts)


def parse(query: Any, parameters: Any = None) -> Optional[Notification]:
    """What a statement notifies, None if it is not a NOTIFY of Odoo's.

    :param query: str, psycopg2's ``Composable``, or Odoo's ``SQL`` with its own parameters
    """
    if parameters is None and hasattr(query, "code") and hasattr(query, "params"):
        query, parameters = query.code, query.params
    text = _text(query)
    if text is None or not isinstance(parameters, (list, tuple)) or len(parameters) != 1:
        return None
    payload = parameters[0]
    if not isinstance(payload, str):
        return None
    found = NOTIFY.match(text)
    if found:
        return Notification("pg_notify", found.group(1).lower(), payload)
    found = SELECT.match(text)
    return Notification(found.group(1), found.group(2), payload) if found else None


def _text(query: Any) -> Optional[str]:
    if isinstance(query, str):
        return query
    if isinstance(query, sql.Composed):
        pieces = [_text(piece) for piece in query.seq]
        return None if None in pieces else "".join(pieces)
    if isinstance(query, sql.SQL):
        return query.string
    if isinstance(query, sql.Identifier):
        names = getattr(query, "strings", None) or (query.string,)  # before psycopg2 2.8
        return ".".join('"' + name.replace('"', '""') + '"' for name in names)
    return None


# -- what waits ---------------------------------------------------------------------------------


class Outbox:
    """What could not leave yet, in its order. Equal ones are one. One thread at a time.

    :param limit: so many at most, the oldest is dropped for one more
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: Dict[Notification, None] = collections.OrderedDict()
        self._taken: Optional[Notification] = None

    def __len__(self) -> int:
        return len(self._waiting) + (self._taken is not None)

    def add(self, notification: Notification) -> int:
        """:return: how many were dropped for it, 0 or 1"""
        # One that is being sent may arrive before the caller's rows are there: it is not equal.
        self._waiting.setdefault(notification)
        if len(self._waiting) <= self._limit:
            return 0
        self._waiting.popitem(last=False)
        return 1

    def take(self) -> Optional[Notification]:
        """The first one, which waits until ``remove`` or ``put_back``; None if there is none."""
        assert self._taken is None
        if self._waiting:
            self._taken, _ = self._waiting.popitem(last=False)
        return self._taken

    def remove(self) -> None:
        self._taken = None

    def put_back(self) -> None:
        """The one that was taken is the first again."""
        taken, self._taken = self._taken, None
        self._waiting[taken] = None
        self._waiting.move_to_end(taken, last=False)


# -- the connection -----------------------------------------------------------------------------

# How the SQLSTATE of a statement begins that would be refused for ever: data that does not fit,
# what the function itself raises, what it lacks or may not do. Every other error is the path's:
# gone, full, starting up, a standby, a pooler's own.
REFUSED = ("0A", "21", "22", "23", "38", "39", "42", "P0")

# The same for all processes: a pooler that gives a server connection from one client to the next
# changes its name first where theirs differ, and it would keep the pid of whoever had it last.
APPLICATION_NAME = "bus_alt_connection notify"


def connect(timeout: float, host_timeout: float) -> BlockingConnection:
    """Connect to the system database as Odoo itself does.

    :param timeout: seconds until the connection has to be ready
    :param host_timeout: seconds until the host has to answer at all
    :raises ConnectionLost: with the reason
    """
    from . import endpoints  # the rest of this file needs no Odoo

    info = dict(endpoints.pooled(), application_name=APPLICATION_NAME)
    if extensions.libpq_version() >= 120000:
        # A host that takes no packets any more is given up, one that is slow to answer is not.
        info["tcp_user_timeout"] = int(host_timeout * 1000)
    try:
        return BlockingConnection(info, timeout, min(host_timeout, timeout))
    except ConnectionLost as exc:
        raise ConnectionLost(exc.reason, endpoints.shown(info))


def is_refusal(error: Any) -> bool:
    """Whether the server refuses the statement itself."""
    return isinstance(error, psycopg2.Error) and (error.pgcode or "").startswith(REFUSED)


def statement(notifications: List[Notification]) -> Tuple[str, List[str]]:
    """One statement for all of them, so that all leave or none: (SQL, parameters)."""
    calls = [each.function.replace("%", "%%") + "(%s, %s)" for each in notifications]
    parameters = [part for each in notifications for part in (each.channel, each.payload)]
    return "SELECT " + ", ".join(calls), parameters


class Notifier:
    """The sending half of one process. Any of its threads or greenlets may send.

    :param connect: as the function above
    :param timeout: seconds that a caller waits at most
    :param host_timeout: seconds that the host may take to answer at all

    :ivar sent: NOTIFYs that left
    :ivar dropped: NOTIFYs that will not leave any more
    :ivar connections: that were made
    """

    IDLE_SECONDS = 60.0
    LIMIT = 1000  # NOTIFYs that wait, each of up to 8 kB
    RETRY_SECONDS = 0.6  # from one attempt to the next, at most
    EXIT_SECONDS = 1.0  # the end of the process waits so long for what has not left

    def __init__(
        self,
        connect: Callable[[float, float], BlockingConnection],
        timeout: float,
        host_timeout: float,
    ) -> None:
        self.sent = self.dropped = self.connections = 0
        self._connect, self._timeout, self._host_timeout = connect, timeout, host_timeout
        self._pid = os.getpid()
        self._using = threading.Lock()  # the connection, and what is taken from the outbox
        self._connection: Optional[BlockingConnection] = None
        self._used_at = 0.0  # time.monotonic() of its latest NOTIFY
        self._closed_by_worker = False
        self._changing = threading.Condition()  # the next two; never held while something is sent
        self._outbox = Outbox(self.LIMIT)
        self._thread: Optional[threading.Thread] = None
        self._throttle = Throttle()
        self._reported = False  # that something waits

    def snapshot(self) -> Dict[str, int]:
        """For the metrics."""
        return {
            "sent": self.sent,
            "waiting": len(self._outbox),
            "dropped": self.dropped,
            "reconnects": max(0, self.connections - 1),
        }

    def send(self, notifications: List[Notification]) -> None:
        """NOTIFY, all in one transaction; what cannot leave now is kept, and leaves later.

        :raises psycopg2.Error: if the server refuses the statement itself
        """
        deadline = time.monotonic() + self._timeout
        if self._outbox:
            return self._keep(notifications)
        if not self._using.acquire(timeout=self._timeout):
            return self._keep(notifications, "another one waits for its answer")
        try:
            if self._outbox:  # since another thread, for which this one waited, could not send
                self._keep(notifications)
            else:
                self._transmit(notifications, deadline)
        except Exception as exc:  # any other: the caller's work is committed
            if is_refusal(exc):
                raise
            self._keep(notifications, one_line(exc))
        except BaseException:  # the caller is made to end
            self._keep(notifications)
            raise
        finally:
            self._using.release()

    # -- the connection -----------------------------------------------------------------------

    def _transmit(self, notifications: List[Notification], deadline: float) -> None:
        """Send on the connection that is kept, else on a new one. To be called with ``_using``.

        :raises ConnectionLost: if they cannot leave
        :raises psycopg2.Error: if the server refuses the statement itself
        """
        if self._connection is not None:
            try:
                self._connection.receive()  # fails if the other side has closed, and does not wait
                return self._execute(notifications, deadline)
            except ConnectionLost:
                self._close()
                if time.monotonic() >= deadline:
                    raise
        self._connection = self._connect(_left(deadline), self._host_timeout)
        self.connections += 1
        self._execute(notifications, deadline)

    def _execute(self, notifications: List[Notification], deadline: float) -> None:
        connection = self._connection
        assert connection is not None
        try:
            connection.query(*statement(notifications), timeout=_left(deadline))
        except BaseException as exc:
            if is_refusal(exc.__cause__):
                raise exc.__cause__ from None  # the connection is as good as before
            self._close()  # an answer that nobody has read may still come
            raise
        self.sent += len(notifications)
        self._used_at = time.monotonic()
        if self._thread is None and not self._closed_by_worker:
            self._need_thread()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _idle_in(self) -> Optional[float]:
        """Seconds until the thread is to close the connection; None if it never is."""
        if self._connection is None or self._closed_by_worker:
            return None
        return self._used_at + self.IDLE_SECONDS - time.monotonic()

    def worker_pauses(self, seconds: float) -> None:
        """A prefork worker, about to do nothing for up to so long, closes an idle connection.

        A thread that does it would cost each worker 72 MB of virtual memory, which Odoo's
        ``limit_memory_soft`` counts.
        """
        self._closed_by_worker = True
        idle_at = self._used_at + self.IDLE_SECONDS
        if self._connection is None or time.monotonic() + seconds < idle_at:
            return
        if self._using.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._using.release()

    # -- what waits ---------------------------------------------------------------------------

    def _keep(self, notifications: List[Notification], reason: Optional[str] = None) -> None:
        with self._changing:
            dropped = sum(map(self._outbox.add, notifications))
            self.dropped += dropped
        if reason is not None:
            self._report(notifications[0], reason)
        if dropped and self._throttle.due("dropped"):
            _logger.warning(
                "More than %d NOTIFYs are queued: the oldest are dropped, %d so far. Bus"
                " notifications are delivered from the table.",
                self.LIMIT,
                self.dropped,
            )
        self._need_thread()

    def _need_thread(self) -> None:
        """Have the thread look what there is to do."""
        with self._changing:
            if self._thread is not None:
                self._changing.notify()
                return
            thread = threading.Thread(target=self._run, name="bus_alt_connection.notifier")
            thread.daemon = True
            try:
                thread.start()
                self._thread = thread
            except RuntimeError as exc:  # none is to be had; the next NOTIFY asks again
                if self._throttle.due("thread"):
                    _logger.warning("Queued NOTIFYs are not retried until the next NOTIFY: %s.", exc)

    def _run(self) -> None:
        """Send what waits and close the connection when it is idle, until there is neither."""
        backoff = Backoff(self.RETRY_SECONDS)
        while True:
            with self._changing:
                idle_in = self._idle_in()
                if not self._outbox:
                    if idle_in is None:
                        self._thread = None
                        return
                    if idle_in > 0:
                        self._changing.wait(idle_in)
                        continue
            with self._using:
                if not self._outbox:
                    if (self._idle_in() or 0) <= 0:
                        self._close()
                    continue
                sent = self._send_first(time.monotonic() + self._timeout)
            if not sent:
                time.sleep(backoff.next())

    def _send_first(self, deadline: float) -> bool:
        """Send the first that waits. To be called with ``_using``.

        :return: False if it still waits
        """
        with self._changing:
            first = self._outbox.take()
        if first is None:
            return True
        try:
            self._transmit([first], deadline)
        except Exception as exc:
            if not is_refusal(exc):
                with self._changing:
                    self._outbox.put_back()
                self._report(first, one_line(exc))
                return False
            self.dropped += 1
            if self._throttle.due("refused"):
                _logger.warning(
                    "PostgreSQL refused a queued NOTIFY on %s, which is dropped: %s.",
                    first.channel,
                    one_line(exc),
                )
        with self._changing:
            self._outbox.remove()
        if self._reported and not self._outbox:
            self._reported = False
            _logger.info("All queued NOTIFYs have been sent.")
        return True

    def process_ends(self) -> None:
        """Send what waits, if that takes a moment only, and close the connection."""
        if self._pid != os.getpid() or not self._using.acquire(timeout=self.EXIT_SECONDS):
            return
        deadline = time.monotonic() + self.EXIT_SECONDS
        # Asked each time: a statement is given 0.1 s at least, and so many may wait.
        while self._outbox and time.monotonic() < deadline and self._send_first(deadline):
            pass
        self._close()  # and keep the lock: nothing may be sent any more
        if self._outbox:
            _logger.warning(
                "%d queued NOTIFYs are lost with this process. Bus notifications are delivered from"
                " the table.",
                len(self._outbox),
            )

    # -----------------------------------------------------------------------------------------

    def _report(self, notification: Notification, reason: str) -> None:
        if self._throttle.due("waiting"):
            self._reported = True
            _logger.warning(
                "Cannot send a NOTIFY on %s: %s. It is queued, as are all that follow. Retrying.",
                notification.channel,
                reason,
            )


def _left(deadline: float) -> float:
    """Seconds until then, at least enough for one that answers at once."""
    return max(0.1, deadline - time.monotonic())


# -- of this process ----------------------------------------------------------------------------

# pid -> Notifier. One that was inherited by a fork stays here, unused, never closed: closing it
# would end the parent's session (psycopg2 itself leaves it alone when the process ends).
_notifiers: Dict[int, Notifier] = {}


def of_process() -> Notifier:
    """The notifier of this process, made when it is first asked for."""
    pid = os.getpid()
    if pid not in _notifiers:
        from .settings import Settings

        timeout = Settings.of_odoo().connect_timeout_seconds
        made = Notifier(connect, timeout, timeout / 6)
        if _notifiers.setdefault(pid, made) is made:
            atexit.register(made.process_ends)
    return _notifiers[pid]


CRON_SECONDS = 70.0  # between two rounds of a cron worker, at most


def patches() -> List[Tuple[Any, str, Any]]:
    """Prefork workers that close their idle connection, see ``Notifier.worker_pauses``."""
    from odoo.service import server

    worker = getattr(server, "Worker", None)
    if not hasattr(worker, "check_limits") or not hasattr(server, "WorkerCron"):
        return []  # the thread does it
    check_limits = worker.check_limits

    @functools.wraps(check_limits)
    def check_limits_and_connection(self: Any) -> Any:
        # It waits next: an HTTP worker for a request, a cron worker for a minute and some seconds.
        cron = isinstance(self, server.WorkerCron)
        of_process().worker_pauses(CRON_SECONDS if cron else self.multi.beat)
        return check_limits(self)

    return [(worker, "check_limits", check_limits_and_connection)]
