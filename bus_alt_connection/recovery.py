# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The recovery of the bus: rows of ``bus_bus`` that a client lacks are found, and the client is woken.

Contract: a NOTIFY is only ever a hint; the table is the truth. A look reads the rows of the last while and compares
them with what each client has received. It changes nothing but the time from which the next look begins, and that
only once everyone who lacked a row has been woken: a look that fails half-way is looked again. One thread looks at one
database after the other, those that answer first, and wakes clients at one pace.
"""

import logging
from typing import Any, Callable, Dict, List, Optional

from . import endpoints, runtime
from .errors import ConnectionLost
from .pooled import PooledPath

_logger = logging.getLogger(__name__)

# Of one database: the channels and ids of the rows that are younger than %(seconds)s and older than %(settled)s, and
# one row without ids: whether the server is a standby, and whether there are more rows than are read.
QUERY = """
WITH newest AS (SELECT coalesce(max(id), 0) - {limit} AS floor FROM bus_bus),
     clock AS (SELECT timezone('UTC', now()) - %(seconds)s * interval '1 second' AS since,
                      timezone('UTC', now()) - %(settled)s * interval '1 second' AS until)
SELECT channel::text, array_agg(id), NULL, NULL FROM bus_bus, newest, clock
WHERE id > floor AND coalesce(create_date BETWEEN since AND until, true) GROUP BY 1
UNION ALL
SELECT NULL, NULL, pg_is_in_recovery(), (
    SELECT create_date > since FROM bus_bus, newest, clock WHERE id <= floor ORDER BY id DESC LIMIT 1)
""".format(limit=10000)
EXISTS = "SELECT 1 FROM pg_database WHERE datname = %s"


class Database:
    """What is known of one database."""

    def __init__(self, now: float) -> None:
        self.since = now  # runtime.monotonic() when the latest complete look began
        self.tried_at = 0.0  # the same of the latest look
        self.failures = 0  # since the latest complete look
        self.pause = 0.0  # seconds until the next look while LISTENING


class Recovery:
    """Look and wake, in a thread of its own, for one ``listener.Listener``."""

    # A client of 16 and later remembers for so long what it has received (see ``mends.history``), so rows that
    # committed so much later than others are found. Upstream shows a new client the last 50 s.
    STRAGGLER_SECONDS = 60.0
    OVERLAP_SECONDS = 10.0  # the same where clients ask the table themselves
    SETTLED_SECONDS = 5.0  # while NOTIFYs arrive, that of a younger row may be on its way
    LOOK_SECONDS = (20.0, 25.0)  # between looks, and between questions to the pooled path, while LISTENING
    GRACE_SECONDS = 1.0  # after a loss until the first poll: most losses are over before
    MOST_SECONDS = 60.0  # between looks at a database that does not answer
    BATCH, BATCH_SECONDS = 25, 0.05  # 500 wake-ups a second: each is a query, and work for the evented process

    def __init__(self, listener: Any) -> None:
        self._listener, self._subscribers = listener, listener.subscribers
        self._path = PooledPath(listener.settings.connect_timeout_seconds)
        self._databases: Dict[str, Database] = {}
        self._identity: Any = None
        self._answered_at = 0.0  # when a database that had failed answered again
        self._checked_at = runtime.monotonic()
        self._poll_share = runtime.uniform(0.8, 1.0)  # those that lost one server poll apart
        self._throttle = runtime.Throttle()
        self.woken = self.failed_looks = 0

    def start(self) -> None:
        """Start the thread."""
        runtime.start_thread(self.run, "recovery")

    def step_inline(self) -> None:
        """In the listener's thread: close its pooled connection, since this one asks once it is LISTENING."""
        self._listener.path.close()

    def run(self) -> None:
        """Look whenever a look is due, until the listener stops."""
        while not self._listener.stopping.is_set():
            pause = 1.0
            try:
                pause = self.step()
            except Exception:  # a defect of this addon must not end the recovery
                self._listener.report_defect()
            if pause > 0:
                self._listener.changed.wait(pause)
            self._listener.changed.clear()
        self._path.close()

    def step(self) -> float:
        """Make one look, if one is due.

        :return: seconds until the next one
        """
        state, now = self._listener.state, runtime.monotonic()
        self._check(state, now)
        for name in self._subscribers.databases():
            self._databases.setdefault(name, Database(now))
        due = {name: self._due_at(each, state) for name, each in self._databases.items()}
        if not due:
            return self.LOOK_SECONDS[0] if state.lost_at is None else 1.0
        name = min(due, key=lambda name: (due[name] > now, self._databases[name].failures > 0, due[name]))
        if due[name] > now:
            return due[name] - now
        if name not in self._subscribers.databases():
            del self._databases[name]  # nobody waits for its rows any more
        else:
            self._try(name, self._databases[name], state, now)
        return 0.0

    def _check(self, state: Any, now: float) -> None:
        """Follow the listener to another server, and see whether NOTIFYs still go to that."""
        session = self._listener.session
        if session is not None and session.identity != self._identity:
            self._identity = session.identity
            self._path.close()
        if state.lost_at is None and now - self._checked_at > self.LOOK_SECONDS[0]:
            self._checked_at = now
            self._listener.check_path(self._path)

    def _due_at(self, database: Database, state: Any) -> float:
        """Return the time of the next look at a database."""
        changed = state.since > database.tried_at and state.lost_at is None
        if changed or self._answered_at > database.tried_at:
            return 0.0
        poll_seconds = self._poll_share * self._listener.settings.poll_seconds
        if database.failures:
            return database.tried_at + min(self.MOST_SECONDS, poll_seconds * 2 ** min(database.failures - 1, 8))
        if state.lost_at is None:
            return database.tried_at + database.pause
        return max(state.lost_at + self._poll_share * self.GRACE_SECONDS, database.tried_at + poll_seconds)

    def _try(self, name: str, database: Database, state: Any, now: float) -> None:
        database.tried_at, database.pause = now, runtime.uniform(*self.LOOK_SECONDS)
        # Since it is LISTENING no look was complete: NOTIFYs of older rows will not come.
        catching_up = state.lost_at is not None or database.since < state.since
        if not catching_up and not self._subscribers.remembers:
            database.since = now
            return  # each client asks the table itself, at least every 50 s
        try:
            self.look(name, now - database.since, catching_up)
        except ConnectionLost as exc:
            database.failures += 1
            self._report(name, exc)
            return
        database.since = now
        if database.failures:
            database.failures, self._answered_at = 0, runtime.monotonic()

    def look(self, name: str, seconds: float, catching_up: bool) -> None:
        """Wake everyone who lacks a row of this database.

        :param seconds: since the latest complete look began
        :param catching_up: whether no NOTIFY of these rows is to be expected
        :raises ConnectionLost: if the database does not answer
        """
        reach = self.STRAGGLER_SECONDS if self._subscribers.remembers else self.OVERLAP_SECONDS
        settled = 0.0 if catching_up else self.SETTLED_SECONDS
        parameters = {"seconds": seconds + reach, "settled": settled}
        rows = self._path.query(name, QUERY, parameters)
        standby, more = next(row[2:] for row in rows if row[1] is None)
        if standby:
            raise self._path.give_up_standby()
        ids: Optional[Dict[str, List[int]]] = {channel: found for channel, found, *_ in rows if found}
        if more and catching_up:
            ids = None  # nobody knows which rows those are: when in doubt, wake
        self._wake(self._subscribers.wakers(name, ids, self._listener.loop_connection.deliver))

    def _wake(self, wakers: List[Callable[[], Any]]) -> None:
        for number, wake in enumerate(wakers, 1):
            try:
                wake()
            except Exception:  # any: those after it are woken all the same
                self._listener.report_defect()
            self.woken += 1
            if number % self.BATCH == 0:
                runtime.sleep(self.BATCH_SECONDS)

    def _report(self, name: str, problem: ConnectionLost) -> None:
        self.failed_looks += 1
        try:
            if not self._path.query(endpoints.system_database(), EXISTS, (name,)):
                self._databases[name].failures += 8  # a channel of any name can be subscribed to: ask seldom
                return
        except ConnectionLost:
            pass  # then all databases are away, and Odoo says so itself
        if self._throttle.due("look"):
            _logger.warning(
                "Cannot look for undelivered notifications in the database %s: %s. %s Retrying.",
                name, problem.reason, problem.cause.remedy,
            )
