# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Which cursor a thread gets for the system database: one that listens, one that notifies, or
Odoo's own.

Every listener and every NOTIFY of every Odoo series begins with
``db_connect(system database).cursor()``. What that gives is decided in ``_cursor`` below. All
other databases, and all other uses of the system database, get what they always got, connected
when it was always connected.
"""

import contextlib
import functools
import re
import sys
import threading
from typing import Any, Callable, Iterator, List, Optional, Tuple

import psycopg2

import odoo.sql_db

from . import endpoints, metrics, notifier
from .listener import Listener
from .settings import Settings

_thread = threading.local()  # .subscribers: whose listener this thread is; .open: its ListeningCursor

LISTEN = re.compile(r'\s*listen\s+"?(\w+)"?\s*;?\s*$', re.IGNORECASE)
IN_RECOVERY = re.compile(r"\s*select\s+pg_is_in_recovery\(\)\s*;?\s*$", re.IGNORECASE)


@contextlib.contextmanager
def listening_for(subscribers: Any) -> Iterator[None]:
    """Mark the current thread as a listener's.

    :param subscribers: of ``dispatcher`` or ``cron``; None marks nothing
    """
    before = getattr(_thread, "subscribers", None)
    _thread.subscribers = subscribers
    try:
        yield
    finally:
        _thread.subscribers = before


def listener_of(subscribers: Callable[[Any], Any]) -> Callable:
    """Decorate a method that runs a listener's loop: it runs marked.

    :param subscribers: called with the object, returns its subscribers
    """

    def decorate(run: Callable) -> Callable:
        @functools.wraps(run)
        def run_as_listener(self: Any, *args: Any, **kwargs: Any) -> Any:
            with listening_for(subscribers(self)):
                return run(self, *args, **kwargs)

        return run_as_listener

    return decorate


def missing() -> Optional[str]:
    """What this Odoo lacks of what ``patches`` needs, or None."""
    for name in ("db_connect", "connection_info_for"):
        if not hasattr(odoo.sql_db, name):
            return f"odoo.sql_db.{name}"
    return None


def patches() -> List[Tuple[Any, str, Any]]:
    """``db_connect`` that gives these cursors, and what a kept connection needs."""
    upstream = odoo.sql_db.db_connect
    keep_notify = Settings.of_odoo().keep_notify

    @functools.wraps(upstream)
    def db_connect(to: str, *args: Any, **kwargs: Any) -> Any:
        connection = upstream(to, *args, **kwargs)
        if to == endpoints.system_database() and not args and not kwargs:
            connection.cursor = functools.partial(_cursor, connection.cursor, keep_notify)
        return connection

    of_notifier = notifier.patches() if keep_notify else []
    return [*of_notifier, (odoo.sql_db, "db_connect", db_connect)]


def _cursor(own: Callable[..., Any], keep_notify: bool, *args: Any, **kwargs: Any) -> Any:
    """The cursor that a thread gets.

    :param own: gives Odoo's own
    """
    own = functools.partial(own, *args, **kwargs)
    subscribers = getattr(_thread, "subscribers", None)
    if subscribers is not None and getattr(_thread, "open", None) is None:
        # Others while this one is open are no listeners: a cron thread runs jobs meanwhile.
        own = functools.partial(ListeningCursor, subscribers, own)
    # Also in a listener's thread: before series 15 a cron thread runs jobs and never LISTENs.
    # Only to a function that NOTIFYs, since Odoo's own cursor connects when it is made and others
    # rely on that: where that fails, listing the databases raises, but where its query fails, it
    # finds none, and logs everyone out.
    if keep_notify and notifier.sends(sys._getframe(1).f_code):
        return NotifyingCursor(own)
    return own()


class NotifyingCursor:
    """A cursor for NOTIFYs, which leave when it commits. It has no connection of its own.

    Used for anything else it becomes the one that its thread gets otherwise, Odoo's own or one that
    listens, in which what was executed so far is executed again.
    """

    def __init__(self, own: Callable[[], Any]) -> None:
        self._own = own
        self._cursor: Any = None  # what it became
        self._closed = False
        self._executed: List[Tuple[notifier.Notification, tuple]] = []  # not committed yet

    @property
    def closed(self) -> bool:
        return self._closed if self._cursor is None else self._cursor.closed

    def execute(self, query: Any, params: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self._cursor is None and not self._closed:
            notification = notifier.parse(query, params)
            if notification is not None:
                self._executed.append((notification, (query, params)))
                return None
        return self._opened().execute(query, params, *args, **kwargs)

    def commit(self) -> None:
        executed, self._executed = self._executed, []
        if self._cursor is not None:
            self._cursor.commit()
        elif executed:
            notifier.of_process().send([notification for notification, _ in executed])

    def rollback(self) -> None:
        self._executed = []
        if self._cursor is not None:
            self._cursor.rollback()

    def close(self) -> None:
        self._executed = []
        self._closed = True
        if self._cursor is not None:
            self._cursor.close()

    def __enter__(self) -> "NotifyingCursor":
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        try:
            if exc_type is None:
                self.commit()
        finally:
            self.close()

    def _opened(self) -> Any:
        if self._cursor is None:
            if self._closed:
                raise psycopg2.InterfaceError("Cursor already closed")
            self._cursor = self._own()
            for _, statement in self._executed:
                self._cursor.execute(*statement)
            self._executed = []
        return self._cursor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._opened(), name)


class ListeningCursor:
    """The part of Odoo's cursor that listeners use.

    LISTEN goes to the listener; a statement of any other kind, which no listener of Odoo's
    sends, goes to a cursor of Odoo's own.
    """

    def __init__(self, subscribers: Any, own: Callable[[], Any]) -> None:
        self._listener = Listener(subscribers)
        self._cnx = self._listener.loop_connection
        self._own = own
        self._cursor: Any = None  # Odoo's own
        self._in_recovery = False
        self.closed = False
        _thread.open = self
        metrics.serve()

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        listen = LISTEN.match(query) if isinstance(query, str) else None
        self._in_recovery = isinstance(query, str) and bool(IN_RECOVERY.match(query))
        if listen:
            self._listener.listen(listen.group(1))
        elif not self._in_recovery:
            # Asked about recovery, "no" makes the loop LISTEN. That a standby takes no LISTEN is
            # the listener's affair: it goes on until it finds a primary.
            return self._opened().execute(query, *args, **kwargs)
        return None

    def fetchone(self) -> Optional[tuple]:
        return (False,) if self._in_recovery else self._opened().fetchone()

    def commit(self) -> None:
        self._listener.begin()
        if self._cursor is not None:
            self._cursor.commit()

    def rollback(self) -> None:
        if self._cursor is not None:
            self._cursor.rollback()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if getattr(_thread, "open", None) is self:
            _thread.open = None
        self._listener.loop_connection.close()
        if self._cursor is not None:
            self._cursor.close()

    def __enter__(self) -> "ListeningCursor":
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        try:
            if exc_type is None:
                self.commit()
        finally:
            self.close()

    def _opened(self) -> Any:
        if self._cursor is None:
            self._cursor = self._own()
        return self._cursor

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._opened(), name)
