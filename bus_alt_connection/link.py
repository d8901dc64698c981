# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""One connection to PostgreSQL; the only module that waits on one.

Contract: every wait has a deadline, and every failure is a ``ConnectionLost``. The code is the same in a thread and
in a greenlet of Odoo's evented process: psycopg2's asynchronous mode, and ``select.poll``, which gevent replaces.
psycopg2's blocking mode has no deadline there: with gevent's wait callback it ignores ``connect_timeout``. One thread
uses a link at a time; only ``interrupt`` may be called from another.
"""

import os
import select
import socket
from typing import Any, Dict, List, Optional, Sequence

import psycopg2
from psycopg2 import extensions

from . import runtime
from .errors import ConnectionLost, TimedOut, one_line

# What psycopg2 raises for a connection that fails. A server's message in an encoding that is not the connection's is
# a UnicodeDecodeError: before the log-in is over PostgreSQL sends messages in the encoding of its own locale.
FAILURES = (psycopg2.Error, OSError, UnicodeError)


class Link:
    """A connection.

    :ivar info: its endpoint, see ``endpoints``
    :ivar timeout: seconds that a statement may take
    :ivar answered: whether the host has accepted the connection
    """

    def __init__(self, info: Dict[str, Any], timeout: float) -> None:
        self.info, self.timeout = info, timeout
        self.answered = False
        self._connection: Any = None
        self._pid, self._closing = os.getpid(), runtime.Lock()

    @classmethod
    def open(cls, info: Dict[str, Any], timeout: float, host_timeout: Optional[float] = None) -> "Link":
        """Return a link that is connected; see ``connect``."""
        link = cls(info, timeout)
        try:
            link.connect(timeout, host_timeout)
        except BaseException:
            link.close()
            raise
        return link

    def connect(self, timeout: float, host_timeout: Optional[float] = None) -> None:
        """Connect. After a ``TimedOut`` it may be called again, and goes on.

        :param timeout: seconds until the connection is ready
        :param host_timeout: seconds until the host accepts it
        :raises ConnectionLost: with the reason
        """
        if self._connection is None:
            self._begin("UTF8")
        self._drive(timeout, host_timeout)
        if self._connection.get_parameter_status("server_encoding") == "SQL_ASCII":
            # Such a server sends any bytes. psycopg2 drops what it cannot decode, with all that came behind it.
            # In LATIN1 every byte is a letter.
            self._connection.close()
            self._begin("LATIN1")
            self._drive(timeout)

    def _begin(self, encoding: str) -> None:
        try:
            self._connection = psycopg2.connect(async_=1, client_encoding=encoding, **self.info)
        except FAILURES as exc:
            raise ConnectionLost(one_line(exc)) from exc

    def _drive(self, timeout: float, host_timeout: Optional[float] = None) -> None:
        """Wait until the connection is idle."""
        deadline, expired = runtime.monotonic() + timeout, False
        host_deadline = deadline if host_timeout is None else min(deadline, runtime.monotonic() + host_timeout)
        try:
            while True:
                state = self._connection.poll()
                if state == extensions.POLL_OK:
                    return
                if expired:
                    raise TimedOut("no answer in time (timeout)")
                limit = deadline if self.answered else host_deadline
                event = select.POLLOUT if state == extensions.POLL_WRITE else select.POLLIN
                if self._ready(event, limit - runtime.monotonic()):
                    self.answered = True
                elif self.answered:
                    expired = True  # read once more: this process itself may have been stopped for a while
                else:
                    raise TimedOut("the host does not answer in time (timeout)")
        except FAILURES as exc:
            raise ConnectionLost(one_line(exc)) from exc

    def _ready(self, event: int, seconds: float) -> bool:
        # A new object for each wait: it keeps nothing in the kernel that a forked child could share.
        poller = select.poll()
        poller.register(self._connection.fileno(), event)
        return bool(poller.poll(max(0.0, seconds) * 1000))

    def query(
        self,
        sql: Any,
        parameters: Optional[Sequence] = None,
        timeout: Optional[float] = None,
        server_limit: Optional[float] = None,
    ) -> List[tuple]:
        """Run a statement.

        :param sql: str, or one of psycopg2's ``Composable``
        :param timeout: seconds, if not the connection's own
        :param server_limit: seconds after which the server gives up, too; nothing is left waiting there
        :return: its rows, those of the last one if there are several; [] if it has none
        :raises TimedOut: if there is no answer in time; the connection is of no use any more
        :raises ConnectionLost: on any other error; ``usable`` says whether the connection is as good as before
        """
        try:
            cursor = self._connection.cursor()
            if server_limit is not None:
                # One simple query is one transaction: it passes a pooler, and SET LOCAL ends with it.
                limit = b"%d" % (server_limit * 1000)
                settings = b"SET LOCAL statement_timeout = %s; SET LOCAL lock_timeout = %s; " % (limit, limit)
                sql, parameters = settings + cursor.mogrify(sql, parameters), None
            cursor.execute(sql, parameters)
        except FAILURES as exc:
            raise ConnectionLost(one_line(exc)) from exc
        self._drive(self.timeout if timeout is None else timeout)
        return cursor.fetchall() if cursor.description else []

    @property
    def usable(self) -> bool:
        """Whether another statement may be run."""
        return not self._connection.closed and not self._connection.isexecuting()

    def wait(self, seconds: float) -> bool:
        """Wait until the server says something.

        :return: False after so many seconds without a word
        :raises ConnectionLost: if the connection is gone
        """
        if self._connection.notifies:
            return True  # came along with the answer to a statement
        try:
            return self._ready(select.POLLIN, seconds)
        except FAILURES as exc:
            raise ConnectionLost(one_line(exc)) from exc

    def receive(self) -> List[extensions.Notify]:
        """Return the notifications that have arrived, without waiting.

        :raises ConnectionLost: if the connection is gone
        """
        try:
            self._connection.poll()
        except FAILURES as exc:
            raise ConnectionLost(one_line(exc)) from exc
        arrived = list(self._connection.notifies)
        del self._connection.notifies[:]
        return arrived

    @property
    def backend_pid(self) -> int:
        """The process id that the other side claims; a pooler invents one."""
        return self._connection.get_backend_pid()

    def interrupt(self) -> None:
        """Make whoever waits on this link fail at once. Called from any thread."""
        with self._closing:
            if self._connection is None or self._connection.closed or self._pid != os.getpid():
                return  # a forked child shares the socket with its parent
            try:
                with socket.socket(fileno=os.dup(self._connection.fileno())) as shared:
                    shared.shutdown(socket.SHUT_RDWR)
            except FAILURES:
                pass  # it is gone already

    def close(self) -> None:
        """Close the connection, whatever its state."""
        with self._closing:
            if self._connection is not None and not self._connection.closed:
                self._connection.close()
