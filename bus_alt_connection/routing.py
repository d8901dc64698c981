# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Which cursor a caller gets for the system database.

Every listener and every NOTIFY of every version begins with ``db_connect(system database).cursor()``. The cursor that
this gives decides at its first statement: LISTEN of a loop, NOTIFY of the bus or of cron, or Odoo's own cursor from
there on. All other databases are untouched. So is the database manager (``odoo.service.db``): its list has to fail at
connect, since a failing query makes it empty, which ends all sessions.
"""

import contextlib
import functools
import logging
import os
import re
import sys
import threading
from typing import Any, Callable, Iterator, List, Optional, Tuple

import psycopg2
from psycopg2 import sql

import odoo.service.server
import odoo.sql_db

from . import endpoints, notifier, runtime
from .errors import one_line
from .listener import Listener

_logger = logging.getLogger(__name__)

_thread = threading.local()  # .subscribers: whom this thread listens for; .listening: its cursor that LISTENs

LISTEN = re.compile(r'\s*listen\s+"?(\w+)"?\s*;?\s*$', re.IGNORECASE)
IN_RECOVERY = re.compile(r"\s*select\s+pg_is_in_recovery\(\)\s*;?\s*$", re.IGNORECASE)
# As upstream has it: NOTIFY imbus, %s, or SELECT function('imbus', %s).
NOTIFY = re.compile(
    r"\s*(notify\s+(imbus|cron_trigger)\s*,|select\s+[\w\"]+\s*\(\s*'(imbus|cron_trigger)'\s*,)\s*%s\s*\)?\s*;?\s*$",
    re.IGNORECASE,
)
UNTOUCHED = ("odoo.service.db",)  # modules that get Odoo's own cursor


def mark(run: Callable, subscribers: Callable[[Any], Any]) -> Callable:
    """Wrap a method that runs a listener's loop: its thread is marked while it runs.

    :param subscribers: called with the object, returns its subscribers; None marks nothing
    """

    @functools.wraps(run)
    def run_as_listener(self: Any, *args: Any, **kwargs: Any) -> Any:
        with listening_for(subscribers(self)):
            return run(self, *args, **kwargs)

    return run_as_listener


def restart(loop: Callable, name: str, stopping: Any = None) -> Callable:
    """Start a listener's loop again when it fails: upstream would sleep for 20 to 50 s, or end for ever.

    :param name: what to call it in the log
    :param stopping: an event; once it is set the loop's error is raised
    """

    @functools.wraps(loop)
    def restarting_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        backoff = runtime.Backoff()
        while True:
            try:
                return loop(self, *args, **kwargs)
            except Exception as exc:  # any, another addon's included
                if stopping is not None and stopping.is_set():
                    raise
                _logger.warning("%s failed (%s) and goes on.", name, one_line(exc))
                _logger.debug("Where that came from:", exc_info=True)
            runtime.sleep(backoff.next())

    return restarting_loop


@contextlib.contextmanager
def listening_for(subscribers: Any) -> Iterator[None]:
    before = getattr(_thread, "subscribers", None)
    _thread.subscribers = subscribers
    try:
        yield
    finally:
        _thread.subscribers = before


def patches(keep_notify: bool) -> List[Tuple[Any, str, Any]]:
    """Return ``db_connect`` that gives these cursors.

    :param keep_notify: whether NOTIFYs leave on the connection that is kept
    """
    upstream = odoo.sql_db.db_connect

    @functools.wraps(upstream)
    def db_connect(to: str, *args: Any, **kwargs: Any) -> Any:
        connection = upstream(to, *args, **kwargs)
        if to == endpoints.system_database() and not args and not kwargs:
            connection.cursor = functools.partial(_cursor, connection.cursor, keep_notify)
        return connection

    return [(odoo.sql_db, "db_connect", db_connect)]


def _cursor(own: Callable[..., Any], keep_notify: bool, *args: Any, **kwargs: Any) -> Any:
    """Return the cursor that the caller gets; ``own`` makes Odoo's."""
    subscribers = getattr(_thread, "subscribers", None)
    if getattr(_thread, "listening", None) is not None:
        subscribers = None  # a cron thread runs jobs while its first cursor LISTENs
    keep_notify = keep_notify and not _is_prefork_master()
    untouched = sys._getframe(1).f_globals.get("__name__") in UNTOUCHED
    if untouched or (subscribers is None and not keep_notify):
        return own(*args, **kwargs)
    return SystemCursor(functools.partial(own, *args, **kwargs), subscribers, keep_notify)


def _is_prefork_master() -> bool:
    """Return whether this process forks workers: they must not inherit a connection."""
    server = odoo.service.server.server
    return hasattr(server, "workers_http") and server.pid == os.getpid()


class SystemCursor:
    """A cursor on the system database that has no connection of its own.

    :param own: makes Odoo's own cursor
    :param subscribers: whom a LISTEN is for; None in a thread that does not listen
    :param keep_notify: whether a NOTIFY leaves on the connection that is kept
    """

    def __init__(self, own: Callable[[], Any], subscribers: Any, keep_notify: bool) -> None:
        self._own, self._subscribers, self._keep_notify = own, subscribers, keep_notify
        self._cursor: Any = None  # Odoo's own
        self._listener: Optional[Listener] = None
        self._notifies: List[notifier.Statement] = []  # not committed yet
        self._in_recovery = self.closed = False

    def execute(self, query: Any, params: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Run a statement, or keep it for ``commit``."""
        text = _text(query)
        self._in_recovery = self._subscribers is not None and bool(IN_RECOVERY.match(text))
        if self._in_recovery:
            # The answer "no" makes the loop LISTEN. A standby is the listener's affair: it looks for a primary.
            return None
        listen = LISTEN.match(text) if self._subscribers is not None else None
        if listen:
            self._listen().listen(listen.group(1))
            return None
        if self._cursor is None and self._keep_notify and not self.closed and NOTIFY.match(text):
            self._notifies.append((getattr(query, "code", query), tuple(getattr(query, "params", params) or ())))
            return None
        return self._opened().execute(query, params, *args, **kwargs)

    def fetchone(self) -> Optional[tuple]:
        """Return a row of the latest statement."""
        return (False,) if self._in_recovery else self._opened().fetchone()

    def commit(self) -> None:
        """Begin to listen, or send the NOTIFYs."""
        notifies, self._notifies = self._notifies, []
        if self._listener is not None:
            self._listener.begin()
        if self._cursor is not None:
            self._cursor.commit()
        elif notifies:
            notifier.get_notifier().send(notifies)

    def rollback(self) -> None:
        """Forget what was not committed."""
        self._notifies = []
        if self._cursor is not None:
            self._cursor.rollback()

    def close(self) -> None:
        """End the listener, and give Odoo's own cursor back."""
        self.closed, self._notifies = True, []
        if self._listener is not None:
            self._listener.loop_connection.close()
            _thread.listening = None if _thread.listening is self else _thread.listening
        if self._cursor is not None:
            self._cursor.close()

    def __enter__(self) -> "SystemCursor":
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        try:
            if exc_type is None:
                self.commit()
        finally:
            self.close()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "_cnx" and self._subscribers is not None:  # what a loop waits on; some read it before they LISTEN
            return self._listen().loop_connection
        return getattr(self._opened(), name)

    def _listen(self) -> Listener:
        if self._listener is None:
            self._listener = Listener(self._subscribers)
            _thread.listening = self
        return self._listener

    def _opened(self) -> Any:
        """Return Odoo's own cursor, in which what was executed so far is executed again."""
        if self.closed and self._cursor is None:
            raise psycopg2.InterfaceError("Cursor already closed")
        if self._cursor is None:
            self._cursor = self._own()
            for statement in self._notifies:
                self._cursor.execute(*statement)
            self._notifies = []
        return self._cursor


def _text(query: Any) -> str:
    """Return the text of a statement: of a str, of Odoo's ``SQL``, or of one of psycopg2's without a connection."""
    if isinstance(query, sql.Composed):
        return "".join(map(_text, query.seq))
    if isinstance(query, sql.Identifier):
        return '"name"'
    text = getattr(query, "code", getattr(query, "string", query))
    return text if isinstance(text, str) else ""
