# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""One connection to PostgreSQL that never blocks the process it runs in.

psycopg2 in its asynchronous mode, driven by ``poll``: in a thread only that thread waits, and in
the evented process, where Odoo has gevent patch ``select`` and ``socket``, only that greenlet.
Host names are resolved here and not by libpq, which would resolve them in C and stall every
websocket of the evented process. One user at a time; nothing here knows Odoo's bus.
"""

import os
import selectors
import socket
import time

import psycopg2
from psycopg2 import extensions

LOCAL = ("localhost", "::1")


# When a server started: two connections with the same answer reach the same one. A number, since
# a time as text depends on each role's time zone.
STARTED = "(extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint"


class Lost(Exception):
    """The connection could not be made, or is gone.

    :param str reason: one line without secrets
    :param str place: where it goes, for people
    """

    def __init__(self, reason, place=None):
        super(Lost, self).__init__("%s: %s" % (place, reason) if place else reason)
        self.reason = reason


class Stopped(Exception):
    """The one who waits was told to end."""


def wait(reading, writing, timeout):
    """Wait until a file descriptor is ready.

    :param list reading: file descriptors to read from
    :param list writing: file descriptors to write to
    :param float timeout: seconds
    :return: set of the file descriptors that are ready, empty after the timeout
    """
    with selectors.DefaultSelector() as selector:
        for fileno in reading:
            selector.register(fileno, selectors.EVENT_READ)
        for fileno in writing:
            selector.register(fileno, selectors.EVENT_WRITE)
        return {key.fd for key, _ in selector.select(max(timeout, 0))}


def one_line(error):
    """An error's first line; libpq adds hints below. No message of libpq's names a password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def addresses(info):
    """Resolve ``host`` in Python: gevent makes this a thread of its own, libpq would not.

    :param dict info: libpq keywords; ``host`` and ``port`` may be libpq's lists with commas
    :return: list of libpq keywords, one an address, each with ``hostaddr`` if it needs one
    :raises Lost: if no name is known
    """
    hosts = str(info.get("host") or os.environ.get("PGHOST") or "").split(",")
    ports = str(info.get("port") or "").split(",")
    if len(ports) != len(hosts):
        ports = ports[:1] * len(hosts)
    found, problem = [], None
    for host, port in zip(hosts, ports):
        one = dict(info, host=host or None, port=port or None)
        if not host or host.startswith(("/", "@")):
            found.append(one)
            continue
        try:
            resolved = socket.getaddrinfo(host, port or None, 0, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            problem = Lost("could not resolve host name %s: %s" % (host, one_line(exc)))
            continue
        for entry in resolved:
            target = dict(one, hostaddr=entry[4][0])
            if target not in found:
                found.append(target)
    if not found:
        raise problem
    return found


def place(info):
    """Where a connection goes, for people: ``host:port/database as user``."""
    host = info.get("host") or os.environ.get("PGHOST") or "the local socket"
    shown = "[%s]" % host if ":" in host else host
    return "%s:%s/%s as %s" % (
        shown,
        info.get("port") or os.environ.get("PGPORT") or 5432,
        info.get("dbname"),
        info.get("user") or os.environ.get("PGUSER") or "the system's user",
    )


def told_address(pooled):
    """Where PostgreSQL says that it is, asked through another connection.

    :param Link pooled: a connection to it, through a pooler or not
    :return: (host, port)
    :raises Lost: if it cannot be asked
    """
    host, port = pooled.query(
        "SELECT host(inet_server_addr()),"
        " coalesce(inet_server_port(), current_setting('port')::int)"
    )[0]
    asked = pooled.info.get("host") or os.environ.get("PGHOST") or ""
    remote = asked and not asked.startswith(("/", "@", "127.")) and asked not in LOCAL
    if remote and (host is None or host.startswith("127.") or host in LOCAL):
        host = asked  # the pooler's own machine, as it is called from here
    return host or "localhost", port


def pooled(settings, database=None, wakeup=None):
    """Connect as Odoo itself does.

    :return: Link on Odoo's own address
    :raises Lost: with the reason
    """
    patience = settings.connect_timeout_seconds
    return Link(settings.pooled(database), patience, patience, wakeup)


class Link(object):
    """An open connection; as a context manager it is closed at the end.

    :param dict info: libpq keywords
    :param float tcp_timeout: seconds until the host has to answer at all
    :param float timeout: seconds until the connection has to be ready
    :param wakeup: a file descriptor; the moment it is readable, every wait ends with Stopped
    :raises Lost: with the reason
    """

    def __init__(self, info, tcp_timeout, timeout, wakeup=None):
        self.info = info
        self._wakeup = [] if wakeup is None else [wakeup]
        self._connection = self._cursor = self._selector = None
        self.timeout = timeout
        problem = None
        for target in addresses(info):
            try:
                self._connect(target, tcp_timeout)
                return
            except Lost as exc:
                problem = exc  # of several the last, as libpq ends with it
        raise problem

    def _connect(self, info, tcp_timeout):
        begun = time.monotonic()
        try:
            self._connection = psycopg2.connect(async_=1, client_encoding="UTF8", **info)
            # An unreachable host is given up early: the next attempt is what finds it again.
            self._drive(begun + self.timeout, begun + tcp_timeout)
            if self._connection.get_parameter_status("server_encoding") == "SQL_ASCII":
                # Such a server sends any bytes, and psycopg2 silently drops what it cannot
                # decode, with all that came behind it. Every byte is a letter in LATIN1.
                self.close()
                latin = dict(info, client_encoding="LATIN1")
                self._connection = psycopg2.connect(async_=1, **latin)
                self._drive(time.monotonic() + self.timeout)
        except BaseException as exc:
            self.close()
            if isinstance(exc, psycopg2.Error):
                raise Lost(one_line(exc))
            raise

    def _drive(self, deadline, first_deadline=None):
        """Wait until the connection is idle again, at most until the deadline."""
        try:
            while True:
                state = self._connection.poll()
                if state == extensions.POLL_OK:
                    return
                writing = state == extensions.POLL_WRITE
                limit = deadline if first_deadline is None else min(deadline, first_deadline)
                fileno = self._connection.fileno()  # may be another each time
                reading = self._wakeup + ([] if writing else [fileno])
                ready = wait(reading, [fileno] if writing else [], limit - time.monotonic())
                if fileno not in self._not_told_to_end(ready):
                    raise Lost("no answer in time (timeout)")
                first_deadline = None
        except (psycopg2.Error, OSError) as exc:
            raise Lost(one_line(exc))

    def _not_told_to_end(self, ready):
        if self._wakeup and self._wakeup[0] in ready:
            raise Stopped()
        return ready

    def wait(self, timeout):
        """Wait until the server says something.

        :param float timeout: seconds
        :return: True if there is something to receive, False after the timeout
        :raises Stopped: if the one who waits was told to end
        :raises Lost: if the connection is gone
        """
        if self._connection.notifies:
            return True  # came along with the answer to a statement
        try:
            if self._selector is None:  # kept: gevent makes a new one dear
                self._selector = selectors.DefaultSelector()
                for fileno in self._wakeup + [self._connection.fileno()]:
                    self._selector.register(fileno, selectors.EVENT_READ)
            ready = {key.fd for key, _ in self._selector.select(max(timeout, 0))}
            return self._connection.fileno() in self._not_told_to_end(ready)
        except (psycopg2.Error, OSError) as exc:
            raise Lost(one_line(exc))

    def send(self, sql, parameters=None):
        """Begin a statement whose result nobody needs."""
        try:
            # Kept until the next one: psycopg2 fails if it is gone before the result is there.
            self._cursor = self._connection.cursor()
            self._cursor.execute(sql, parameters)
            self._connection.poll()  # hands it to the kernel, and may well read the answer
        except psycopg2.Error as exc:
            raise Lost(one_line(exc))

    def query(self, sql, parameters=None):
        """Run a statement.

        :return: list of rows, of the last statement if there are several; [] if it has none
        :raises Lost: on any error, the server's refusal of the statement included
        """
        self.send(sql, parameters)
        self._drive(time.monotonic() + self.timeout)
        return self._cursor.fetchall() if self._cursor.description else []

    def receive(self):
        """Take what has arrived.

        :return: list of psycopg2 ``Notify``
        :raises Lost: if the connection is gone
        """
        try:
            self._connection.poll()
        except psycopg2.Error as exc:
            raise Lost(one_line(exc))
        arrived = list(self._connection.notifies)
        del self._connection.notifies[:]
        return arrived

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    @property
    def backend_pid(self):
        """The process id that the other side claims (a pooler invents one)."""
        return self._connection.get_backend_pid()

    def close(self):
        if self._selector is not None:
            self._selector.close()
            self._selector = None
        if self._connection is not None and not self._connection.closed:
            self._connection.close()
