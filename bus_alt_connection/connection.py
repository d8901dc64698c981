# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""One connection to PostgreSQL that never blocks the process it runs in.

psycopg2 in its asynchronous mode: a wait is one of ``tasks``. Host names are resolved in a thread
of their own, and not by libpq, which would resolve them in C and stall every websocket of the
evented process. One user at a time; nothing here knows Odoo's bus.
"""

import functools
import ipaddress
import os
import socket
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

import psycopg2
from psycopg2 import extensions

from .errors import ConnectionLost, one_line
from .tasks import READ, WRITE, Tasks, ready

_known: Dict[tuple, List[str]] = {}  # (host, port) -> its latest known addresses


async def addresses(info: Dict[str, Any], timeout: float) -> List[Dict[str, Any]]:
    """Resolve ``host``.

    :param info: an endpoint; ``host`` and ``port`` may be libpq's lists with commas
    :param timeout: seconds; the latest known addresses count if there is no answer by then
    :return: endpoints, one an address, each with ``hostaddr`` if it needs one
    :raises ConnectionLost: if no name is known
    """
    hosts = str(info.get("host") or os.environ.get("PGHOST") or "").split(",")
    ports = str(info.get("port") or "").split(",")
    if len(ports) != len(hosts):
        ports = ports[:1] * len(hosts)
    found, problem = [], None  # type: Any
    for host, port in zip(hosts, ports):
        one = dict(info, host=host or None, port=port or None)
        if not host or host.startswith(("/", "@")):
            found.append(one)
            continue
        try:
            found += [dict(one, hostaddr=each) for each in await _resolved(host, port, timeout)]
        except ConnectionLost as exc:
            problem = exc
    if not found:
        raise problem
    return found


async def _resolved(host: str, port: str, timeout: float) -> List[str]:
    try:
        ipaddress.ip_address(host.split("%")[0])
        return [host]
    except ValueError:
        pass
    answer: List[Any] = []
    try:
        reader, writer = socket.socketpair()
    except OSError as exc:  # too many open files
        raise ConnectionLost(one_line(exc)) from exc

    def resolve() -> None:
        try:
            answer.append(socket.getaddrinfo(host, port or None, 0, socket.SOCK_STREAM))
        except (OSError, UnicodeError) as exc:
            answer.append(exc)
        writer.close()  # makes the reader readable

    try:
        # A thread, since nothing else can end a resolver that hangs.
        threading.Thread(target=resolve, daemon=True, name="bus_alt_connection.resolver").start()
        await ready(reader.fileno(), READ, timeout)
    except RuntimeError as exc:  # no thread is to be had
        writer.close()
        answer.append(exc)
    finally:
        reader.close()
    if answer and isinstance(answer[0], list):
        _known[host, port] = list(dict.fromkeys(entry[4][0] for entry in answer[0]))
    if (host, port) not in _known:
        reason = one_line(answer[0]) if answer else "no answer in time"
        raise ConnectionLost(f"could not resolve the host name: {reason}")
    return _known[host, port]


class Connection:
    """An open connection; as a context manager it is closed at the end.

    :ivar info: its endpoint
    :ivar timeout: seconds that a statement may take
    """

    def __init__(self, info: Dict[str, Any], timeout: float) -> None:
        """Not connected yet: see ``open``."""
        self.info, self.timeout = info, timeout
        self._connection: Any = None
        self._cursor: Any = None
        self._unwatch: Optional[Callable[[], None]] = None

    @classmethod
    async def open(
        cls, info: Dict[str, Any], timeout: float, host_timeout: Optional[float] = None
    ) -> "Connection":
        """Connect.

        :param timeout: seconds to resolve the name, and then until the connection is ready; of
            several addresses each has its share
        :param host_timeout: seconds until an address has to answer at all
        :raises ConnectionLost: with the reason
        """
        problem: Any = None
        targets = await addresses(info, host_timeout or timeout)
        deadline = time.monotonic() + timeout  # from here: a resolver that hangs leaves addresses
        for number, target in enumerate(targets):
            connection = cls(info, timeout)
            share = max(0.0, deadline - time.monotonic()) / (len(targets) - number)
            try:
                await connection._connect(target, share, min(host_timeout or share, share))
                connection.info = target
                return connection
            except ConnectionLost as exc:
                problem = exc  # of several the last, as libpq ends with it
        raise problem

    async def _connect(self, info: Dict[str, Any], timeout: float, host_timeout: float) -> None:
        begun = time.monotonic()
        try:
            self._connection = psycopg2.connect(async_=1, client_encoding="UTF8", **info)
            # An unreachable host is given up early: the next attempt is what finds it again.
            await self._drive(begun + timeout, begun + host_timeout)
            if self._connection.get_parameter_status("server_encoding") == "SQL_ASCII":
                # Such a server sends any bytes, and psycopg2 silently drops what it cannot
                # decode, with all that came behind it. Every byte is a letter in LATIN1.
                self.close()
                latin = dict(info, client_encoding="LATIN1")
                self._connection = psycopg2.connect(async_=1, **latin)
                await self._drive(begun + timeout)
        except psycopg2.Error as exc:
            self.close()
            raise ConnectionLost(one_line(exc)) from exc
        except BaseException:  # also if the task is cancelled
            self.close()
            raise

    async def _drive(self, deadline: float, first_deadline: Optional[float] = None) -> None:
        """Wait until the connection is idle again, at most until the deadline."""
        try:
            while True:
                state = self._connection.poll()
                if state == extensions.POLL_OK:
                    return
                event = WRITE if state == extensions.POLL_WRITE else READ
                limit = deadline if first_deadline is None else min(deadline, first_deadline)
                fileno = self._connection.fileno()  # may be another each time
                if not await ready(fileno, event, limit - time.monotonic()):
                    raise ConnectionLost("no answer in time (timeout)")
                first_deadline = None
        except (psycopg2.Error, OSError) as exc:
            raise ConnectionLost(one_line(exc)) from exc

    async def wait(self, timeout: float) -> bool:
        """Wait until the server says something.

        :return: True if there is something to receive, False after `timeout` seconds
        :raises ConnectionLost: if the connection is gone
        """
        if self._connection.notifies:
            return True  # came along with the answer to a statement
        return await ready(self._fileno(), READ, timeout)

    def watch(self, tasks: Tasks, function: Callable[[], None]) -> None:
        """Have a function called whenever the server says something, until ``unwatch`` or the end.

        Nothing is awaited on this connection meanwhile.

        :raises ConnectionLost: if the connection is gone
        """
        fileno = self._fileno()
        tasks.watch(fileno, function)
        self._unwatch = functools.partial(tasks.unwatch, fileno)

    def _fileno(self) -> int:
        try:
            return self._connection.fileno()
        except (psycopg2.Error, OSError) as exc:
            raise ConnectionLost(one_line(exc)) from exc

    def unwatch(self) -> None:
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def send(self, sql: str, parameters: Optional[Sequence] = None) -> None:
        """Begin a statement; ``receive`` sees its end, ``result`` has it then."""
        try:
            # Kept until the next one: psycopg2 fails if it is gone before the result is there.
            self._cursor = self._connection.cursor()
            self._cursor.execute(sql, parameters)
            self._connection.poll()  # hands it to the kernel, and may well read the answer
        except psycopg2.Error as exc:
            self.unwatch()  # libpq has closed its socket
            raise ConnectionLost(one_line(exc)) from exc

    @property
    def executing(self) -> bool:
        """Whether the statement has no result yet."""
        return self._connection.isexecuting()

    def result(self) -> List[tuple]:
        """The rows of the statement, of the last one if there are several; [] if it has none."""
        return self._cursor.fetchall() if self._cursor.description else []

    async def query(
        self, sql: str, parameters: Optional[Sequence] = None, timeout: Optional[float] = None
    ) -> List[tuple]:
        """Run a statement.

        :param timeout: seconds, if not the connection's own
        :return: as ``result``
        :raises ConnectionLost: on any error, the server's refusal of the statement included
        """
        self.send(sql, parameters)
        await self._drive(time.monotonic() + (timeout or self.timeout))
        return self.result()

    def receive(self) -> List[Any]:
        """Take what has arrived.

        :return: list of psycopg2 ``Notify``
        :raises ConnectionLost: if the connection is gone
        """
        try:
            self._connection.poll()
        except psycopg2.Error as exc:
            self.unwatch()  # libpq has closed its socket
            raise ConnectionLost(one_line(exc)) from exc
        arrived = list(self._connection.notifies)
        del self._connection.notifies[:]
        return arrived

    @property
    def hostaddr(self) -> Optional[str]:
        """The address that it goes to, where a name was resolved."""
        return self.info.get("hostaddr")

    @property
    def backend_pid(self) -> int:
        """The process id that the other side claims (a pooler invents one)."""
        return self._connection.get_backend_pid()

    def close(self) -> None:
        self.unwatch()
        if self._connection is not None and not self._connection.closed:
            self._connection.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()


class BlockingConnection:
    """A connection for a thread, or a greenlet, that may wait: the same calls without ``await``.

    :raises ConnectionLost: as ``Connection``
    """

    def __init__(
        self, info: Dict[str, Any], timeout: float, host_timeout: Optional[float] = None
    ) -> None:
        self._tasks = Tasks()
        try:
            self._connection = self._tasks.run(Connection.open(info, timeout, host_timeout))
        except BaseException:
            self._tasks.close()
            raise

    def query(
        self, sql: str, parameters: Optional[Sequence] = None, timeout: Optional[float] = None
    ) -> List[tuple]:
        return self._tasks.run(self._connection.query(sql, parameters, timeout))

    def wait(self, timeout: float) -> bool:
        return self._tasks.run(self._connection.wait(timeout))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def close(self) -> None:
        self._connection.close()
        self._tasks.close()

    def __enter__(self) -> "BlockingConnection":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()
