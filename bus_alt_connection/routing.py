# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The seam: what ``odoo.sql_db.db_connect`` gives to a thread that listens.

Every listener of every Odoo series takes its connection with
``db_connect(system database).cursor()``, LISTENs on it and waits on ``cr._cnx``. In a thread that
is marked with ``listening_as`` the first such cursor is a ``ListeningCursor``; while that one is
open every other is Odoo's own (a cron thread runs jobs meanwhile, which NOTIFY). All other
threads, and all other databases, get what they always got.
"""

import contextlib
import functools
import re
import threading

import odoo.sql_db

from . import endpoints, metrics
from .listener import Listener

_thread = threading.local()  # .owner: whose listener this thread is; .open: its ListeningCursor

LISTEN = re.compile(r'\s*listen\s+"?(\w+)"?\s*;?\s*$', re.IGNORECASE)
IN_RECOVERY = re.compile(r"\s*select\s+pg_is_in_recovery\(\)\s*;?\s*$", re.IGNORECASE)


@contextlib.contextmanager
def listening_as(owner):
    """Mark the current thread as a listener's.

    :param owner: ``dispatcher.Bus`` or ``cron.Cron``
    """
    before = getattr(_thread, "owner", None)
    _thread.owner = owner
    try:
        yield
    finally:
        _thread.owner = before


def listener_of(owner):
    """Decorate a method that runs a listener's loop: it runs marked.

    :param owner: called with the object, returns whose listener it is
    """

    def decorate(run):
        @functools.wraps(run)
        def run_as_listener(self, *args, **kwargs):
            with listening_as(owner(self)):
                return run(self, *args, **kwargs)

        return run_as_listener

    return decorate


def missing():
    """What this Odoo lacks of what ``install`` needs, or None."""
    for name in ("db_connect", "connection_info_for"):
        if not hasattr(odoo.sql_db, name):
            return "odoo.sql_db.%s" % name
    return None


def install():
    """Put the seam in place."""
    upstream = odoo.sql_db.db_connect

    @functools.wraps(upstream)
    def db_connect(to, *args, **kwargs):
        owner = getattr(_thread, "owner", None)
        if (
            owner is None
            or getattr(_thread, "open", None) is not None
            or to != endpoints.system_database()
        ):
            return upstream(to, *args, **kwargs)
        return ListeningDatabase(owner, functools.partial(upstream, to, *args, **kwargs))

    odoo.sql_db.db_connect = db_connect


class ListeningDatabase(object):
    """What ``db_connect`` returns to a listener.

    :param pooled: called without arguments, returns what Odoo itself would have returned
    """

    def __init__(self, owner, pooled):
        self._owner = owner
        self._pooled = pooled

    def cursor(self, *args, **kwargs):
        return ListeningCursor(self._owner, self._pooled)

    def __getattr__(self, name):
        return getattr(self._pooled(), name)


class ListeningCursor(object):
    """The part of Odoo's cursor that listeners use.

    LISTEN goes to the listener; a statement of any other kind, which no listener of Odoo's
    sends, goes to a pooled cursor of Odoo's own.
    """

    def __init__(self, owner, pooled):
        self._listener = Listener(owner)
        self._cnx = self._listener.loop_connection
        self._pooled = pooled
        self._cursor = None
        self._in_recovery = False
        self.closed = False
        _thread.open = self
        metrics.serve()

    def execute(self, query, *args, **kwargs):
        listen = LISTEN.match(query) if isinstance(query, str) else None
        self._in_recovery = isinstance(query, str) and bool(IN_RECOVERY.match(query))
        if listen:
            self._listener.listen(listen.group(1))
        elif not self._in_recovery:
            # Asked about recovery, "no" makes the loop LISTEN. That a standby takes no LISTEN is
            # the listener's affair: it goes on until it finds a primary.
            return self._pooled_cursor().execute(query, *args, **kwargs)

    def fetchone(self):
        return (False,) if self._in_recovery else self._pooled_cursor().fetchone()

    def commit(self):
        self._listener.begin()
        if self._cursor is not None:
            self._cursor.commit()

    def rollback(self):
        if self._cursor is not None:
            self._cursor.rollback()

    def close(self):
        if self.closed:
            return
        self.closed = True
        if getattr(_thread, "open", None) is self:
            _thread.open = None
        self._listener.loop_connection.close()
        if self._cursor is not None:
            self._cursor.close()

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        if exc_type is None:
            self.commit()
        self.close()

    def _pooled_cursor(self):
        if self._cursor is None:
            self._cursor = self._pooled().cursor()
        return self._cursor

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._pooled_cursor(), name)
