# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The recovery of the bus: rows of ``bus_bus`` that a client lacks are found, and the client is woken.

Contract: a NOTIFY is only ever a hint; the table is the truth. A look reads the rows of the last while and compares
them with what each client has received. It changes nothing but the time from which the next look begins, and that
only once everyone who lacked a row has been woken: a look that fails half-way is looked again. One thread looks at one
database after the other, those that answer first, and wakes clients at one pace.
"""

import logging
from typing import Any, Dict, List, Optional, Tuple

from . import endpoints, runtime
from .errors import ConnectionLost
from .pooled import PooledPath

_logger = logging.getLogger(__name__)

LIMIT = 5000  # rows that a look reads: while NOTIFYs arrive it sees each row once, up to 200 rows a second
# Of one database: channels and ids of the rows above the id %(known)s that are older than %(settled)s, and one row for
# the table: its highest id, the lowest one that was read, whether the server is a standby, whether there may be more
# rows. Only the first look goes by %(seconds)s: a row's create_date is when its transaction began, maybe an hour ago.
QUERY = f"""
WITH newest AS (SELECT id, channel, create_date FROM bus_bus WHERE id > %(known)s ORDER BY id DESC LIMIT {LIMIT}),
     clock AS (SELECT timezone('UTC', now()) - %(seconds)s * interval '1 second' AS since,
                      timezone('UTC', now()) - %(settled)s * interval '1 second' AS until)
SELECT channel::text, array_agg(id), NULL::int, NULL::int, NULL, NULL FROM newest, clock
WHERE coalesce(create_date BETWEEN since AND until, true) GROUP BY 1
UNION ALL
SELECT NULL, NULL, (SELECT coalesce(max(id), 0) FROM bus_bus),
    (SELECT min(id) FROM newest, clock WHERE create_date > since), pg_is_in_recovery(),
    (SELECT count(*) = {LIMIT} AND coalesce(min(create_date) > min(since), false) FROM newest, clock)
"""
EXISTS = "SELECT 1 FROM pg_database WHERE datname = %s"


class Database:
    """What is known of one database; times are runtime.monotonic()."""

    def __init__(self, now: float) -> None:
        self.since = now  # when the latest complete look began
        self.due_at = 0.0  # when the next look is due
        self.failures = 0  # since the latest complete look
        self.marks: List[Tuple[float, int]] = []  # of complete looks: (a time, the highest id then)
        self.missing = False  # whether PostgreSQL says that it does not exist


class Recovery:
    """Look and wake, in a thread of its own, for one ``listener.Listener``."""

    # A client of 16 and later remembers for so long what it has received (see ``mends``), so rows that committed so
    # much later than others are found. Where clients ask the table themselves an overlap does.
    STRAGGLER_SECONDS, OVERLAP_SECONDS = 60.0, 10.0
    SETTLED_SECONDS = 5.0  # while NOTIFYs arrive, that of a younger row may be on its way
    LOOK_SECONDS = (20.0, 25.0)  # between looks, and between questions to the pooled path, while LISTENING
    MOST_SECONDS = 60.0  # between looks at a database that does not answer
    BATCH, BATCH_SECONDS = 25, 0.05  # 500 wake-ups a second: each is a query, and work for the evented process

    def __init__(self, listener: Any) -> None:
        self._listener, self._subscribers = listener, listener.subscribers
        self._path = PooledPath(listener.settings.connect_timeout_seconds)
        self._databases: Dict[str, Database] = {}
        self._checked_at = runtime.monotonic()  # when the pooled path was asked for its server
        self._identity: Any = None  # of the listener's server, and whether it was LISTENING, at the latest step
        self._listening = False
        self._throttle = runtime.Throttle()
        self.woken = self.failed_looks = 0

    def start(self) -> None:
        """Start the thread."""
        runtime.start_thread(self.run, "recovery")

    def step_inline(self) -> None:
        """In the listener's thread: close its pooled connection once it is LISTENING, since this thread asks then."""
        if self._listener.state.lost_at is None:
            self._listener.path.close()

    def run(self) -> None:
        """Look whenever a look is due, until the listener stops."""
        while not self._listener.stopping.is_set():
            pause = 1.0
            try:
                pause = self.step()
            except Exception:  # a defect of this addon must not end the recovery
                self._listener.report_defect()
            self._listener.changed.wait(pause)
            self._listener.changed.clear()
        self._path.close()

    def step(self) -> float:
        """Make one look, if one is due.

        :return: seconds until the next one
        """
        state, now = self._listener.state, runtime.monotonic()
        self._follow(state, now)
        wanted = self._subscribers.databases()
        self._databases = {name: self._databases.get(name) or Database(now) for name in wanted}
        if not self._databases:
            return self.LOOK_SECONDS[0]
        # Those that answer go first; of these, the one that waits the longest.
        name, database = min(self._databases.items(), key=lambda item: (
            item[1].due_at > now, item[1].failures > 0, item[1].due_at, item[0]))
        if database.due_at <= now:
            self._try(name, database, state, now)
            return 0.0
        check_at = self._checked_at + self.LOOK_SECONDS[1] if self._listening else database.due_at
        return min(database.due_at, check_at) - now

    def _follow(self, state: Any, now: float) -> None:
        """Have what a change of the listener's state makes due be due, and see where NOTIFYs go."""
        session, listening = self._listener.session, state.lost_at is None
        if session is not None and session.identity != self._identity:
            self._identity = session.identity
            self._path.close()
            for database in self._databases.values():
                # Another server may give the latest ids anew: a copy, or a standby that lacks rows.
                database.marks = [(when, highest - LIMIT // 2) for when, highest in database.marks]
        if listening != self._listening:
            # LISTENING again: catch up at once. Lost: most losses are over before the first poll.
            for database in self._databases.values():
                database.due_at = 0.0 if listening else now + self._spread(1.0)
        self._listening = listening
        if listening and now - self._checked_at > self.LOOK_SECONDS[0]:
            self._checked_at = now
            self._listener.check_path(self._path)

    @staticmethod
    def _spread(seconds: float) -> float:
        """Return a pause of about so long: those that lost one server poll apart."""
        return runtime.uniform(0.8 * seconds, seconds)

    def _try(self, name: str, database: Database, state: Any, now: float) -> None:
        poll_seconds = self._listener.settings.poll_seconds
        listening = state.lost_at is None
        # Since it is LISTENING no look was complete: NOTIFYs of older rows will not come.
        catching_up = not listening or database.since < state.since
        database.due_at = now + (runtime.uniform(*self.LOOK_SECONDS) if listening else self._spread(poll_seconds))
        try:
            # To 15 each client asks the table itself, at least every 50 s.
            if catching_up or self._subscribers.remembers:
                # After an attempt to connect PgBouncer would go on for query_wait_timeout, once a second.
                database.missing = database.missing and not self._exists(name)
                if database.missing:
                    database.due_at = now + self.MOST_SECONDS
                    return
                self.look(name, database, now, catching_up)
        except ConnectionLost as exc:
            pause = self._spread(poll_seconds) * 2 ** min(database.failures, 8)
            database.failures += 1
            database.due_at = runtime.monotonic() + min(self.MOST_SECONDS, pause)
            self._report(name, database, exc)
            return
        database.since = now
        if database.failures:
            database.failures = 0
            for other in self._databases.values():
                other.due_at = 0.0 if other.failures else other.due_at  # they may answer again, too

    def look(self, name: str, database: Database, now: float, catching_up: bool) -> None:
        """Wake everyone who lacks a row of this database.

        :param catching_up: whether no NOTIFY of these rows is to be expected
        :raises ConnectionLost: if the database does not answer
        """
        reach = self.STRAGGLER_SECONDS if self._subscribers.remembers else self.OVERLAP_SECONDS
        marks = database.marks
        while len(marks) > 1 and marks[1][0] <= database.since - reach:
            del marks[0]
        known, seconds = (marks[0][1], 1e9) if marks else (-1, now - database.since + reach)
        settled = 0.0 if catching_up else self.SETTLED_SECONDS
        rows = self._path.query(name, QUERY, {"known": known, "seconds": seconds, "settled": settled})
        highest, lowest, standby, more = next(row[2:] for row in rows if row[1] is None)
        if standby:
            raise self._path.give_up_standby()
        ids: Optional[Dict[str, List[int]]] = {channel: found for channel, found, *_ in rows if found}
        if more and catching_up:
            ids = None  # nobody knows which rows those are: when in doubt, wake
        wakers = self._subscribers.wakers(name, ids, self._listener.loop_connection.deliver)
        for wake in wakers:
            try:
                wake()
            except Exception:  # any: those after it are woken all the same
                self._listener.report_defect()
            self.woken += 1
            if self.woken % self.BATCH == 0:
                runtime.sleep(self.BATCH_SECONDS)
        if highest < known:
            marks.clear()  # the table was emptied, or is another one: it is looked at again, by time
            database.due_at = 0.0
        else:
            marks.append((now, highest) if marks else (now - reach, (lowest or highest + 1) - 1))

    def _report(self, name: str, database: Database, problem: ConnectionLost) -> None:
        self.failed_looks += 1
        try:
            if not self._exists(name):
                # A channel of any name can be subscribed to: such a database is asked for seldom, and not reported.
                database.missing, database.due_at = True, runtime.monotonic() + self.MOST_SECONDS
                self._path.forget(name)
                return
        except ConnectionLost:
            pass  # all databases are away then
        if self._throttle.due("look"):
            _logger.warning(
                "Cannot look for undelivered notifications in the database %s: %s. %s Retrying.",
                name, problem.reason, problem.cause.remedy,
            )

    def _exists(self, name: str) -> bool:
        return bool(self._path.query(endpoints.system_database(), EXISTS, (name,)))
