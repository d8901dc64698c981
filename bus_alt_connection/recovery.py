# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What a listener does on the pooled path: verify, catch up, poll, and look for what was missed.

Contract: a NOTIFY is only ever a hint. The table says which rows a subscriber lacks, and a look at
it wakes exactly those who lack one. All states look in the same way; they differ in when, and in
what a look believes: while NOTIFYs arrive, that of a row is given until the next look to arrive.
"""

import logging
import time
from typing import AbstractSet, Any, Callable, Dict, Hashable, Iterable, List, Optional, Set, Tuple

from . import endpoints
from .backoff import Throttle
from .connection import Connection, addresses
from .errors import ConnectionLost
from .loop_connection import LoopConnection
from .payloads import key_of_row
from .settings import Settings
from .tasks import Tasks, sleep
from .window import Window

_logger = logging.getLogger(__name__)


class PooledPath:
    """Queries at Odoo's own address.

    A connection to a pooler is kept, since there it costs no server connection. One to PostgreSQL
    itself is closed, since there it is one.
    """

    KEPT = 16  # connections at most

    def __init__(self, timeout: float) -> None:
        # Not without a pooler, nor where it gives each client a server connection of its own.
        self.keeps = True
        self._timeout = timeout  # seconds, of a connect and of an answer
        self._kept: Dict[str, Connection] = {}

    async def query(
        self, database: str, sql: str, parameters: Optional[tuple] = None
    ) -> List[tuple]:
        """Run a statement. If the kept connection fails, it runs once more on a new one.

        :raises ConnectionLost: also if the server refuses the statement
        """
        kept = self._kept.pop(database, None)
        if kept is not None:
            try:
                rows = await kept.query(sql, parameters)
                self._keep(database, kept)
                return rows
            except ConnectionLost:
                kept.close()
        connection = await Connection.open(endpoints.pooled(database), self._timeout)
        try:
            rows = await connection.query(sql, parameters)
            if self.keeps and len(self._kept) < self.KEPT:
                pid = (await connection.query("SELECT pg_backend_pid()"))[0][0]
                self.keeps = pid != connection.backend_pid
                if self.keeps:
                    self._keep(database, connection)
            return rows
        finally:
            if self._kept.get(database) is not connection:
                connection.close()

    def _keep(self, database: str, connection: Connection) -> None:
        other = self._kept.get(database)
        if other is not None:
            other.close()
        self._kept[database] = connection

    async def follow_the_name(self) -> None:
        """Close what is kept if the name of Odoo's own address leads elsewhere now."""
        info = endpoints.pooled()
        try:
            now = [target.get("hostaddr") for target in await addresses(info, self._timeout)]
        except ConnectionLost:
            return
        if any(kept.hostaddr not in now for kept in self._kept.values()):
            self.close()

    def close(self) -> None:
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()


class Recovery:
    """The recovery of one listener.

    :param subscribers: of ``dispatcher`` or ``cron``
    :param loop: what upstream's loop waits on
    """

    TOGETHER = 8  # databases that are asked at the same time
    LOOK_BACK_SECONDS = 60  # of the first look at a database; upstream looks back 50 s
    BATCH_SECONDS = 0.05  # from one batch of wake-ups to the next, at least
    MOST_PAUSES = 8  # of that length
    CPU_SHARE = 0.5  # for the wake-ups and all that goes on beside them

    def __init__(self, subscribers: Any, settings: Settings, loop: LoopConnection) -> None:
        self._subscribers, self._settings, self._loop = subscribers, settings, loop
        self._path = PooledPath(settings.connect_timeout_seconds)
        self._windows: Dict[str, Window] = {}
        # database -> rows that the latest look found: (id, channel's key, time.monotonic())
        self._pending: Dict[str, List[Tuple[int, Hashable, float]]] = {}
        self._heard: Dict[Hashable, float] = {}  # channel's key -> its latest notification
        self._throttle = Throttle()
        self._skipped = self._quiet = 0
        self.unanswered: Set[str] = set()  # databases whose latest look failed
        self._busy: Set[str] = set()  # databases that are looked at now
        self.looked_at = time.monotonic()  # when the latest look began
        self.woken = 0
        self._look_back = 0.0  # seconds, of the first look at a database

    def heard(self, keys: Iterable[Hashable]) -> None:
        """Note that notifications named these channels."""
        self._heard.update(dict.fromkeys(keys, time.monotonic()))

    def keep_connections(self, keep: bool) -> None:
        """Whether connections to a pooler are kept."""
        self._path.keeps = keep
        if not keep:
            self._path.close()

    def close(self) -> None:
        self._path.close()

    @property
    def in_doubt(self) -> bool:
        """Whether the latest look found rows that a subscriber lacked."""
        return bool(self._pending)

    # -- verify -------------------------------------------------------------------------------

    async def identity(self) -> tuple:
        """Which server and database NOTIFYs reach, as ``endpoints.IDENTITY``."""
        await self._path.follow_the_name()
        database = endpoints.system_database()
        return (await self._path.query(database, f"SELECT {endpoints.IDENTITY}"))[0]

    async def notify(self, channel: str, payload: str) -> tuple:
        """Send a NOTIFY as Odoo does, and return the same."""
        function = self._subscribers.notify_function().replace('"', '""')
        await self._path.follow_the_name()
        sql = f'SELECT {endpoints.IDENTITY}, "{function}"(%s, %s)'
        return (await self._path.query(endpoints.system_database(), sql, (channel, payload)))[0][:2]

    async def address(self) -> Tuple[str, int]:
        """(host, port) that PostgreSQL says of itself."""
        row = (await self._path.query(endpoints.system_database(), endpoints.ADDRESS))[0]
        return endpoints.address_of(row, endpoints.pooled().get("host"))

    # -- look ---------------------------------------------------------------------------------

    async def catch_up(self, tasks: Tasks, lost_for: float) -> None:
        """Trigger the jobs, and look at all databases.

        :param tasks: runs this
        :param lost_for: seconds since the listener was listening
        """
        self.trigger_jobs()
        await self.look(tasks, True, lost_for, set())

    async def poll(self, tasks: Tasks, lost_for: float) -> None:
        """The same while the listener is not listening; a database that was not done is left out."""
        self.poll_jobs()
        await self.look(tasks, True, lost_for, set(self._busy))

    async def look(
        self, tasks: Tasks, at_once: bool = False, lost_for: float = 0.0, busy: AbstractSet = frozenset()
    ) -> None:
        """Look for rows that subscribers lack, in all databases that have some, and wake them.

        :param at_once: do not wait for the NOTIFY of a row: the listener is not listening
        :param busy: databases to leave out
        """
        self._look_back = self.LOOK_BACK_SECONDS + lost_for
        self.looked_at = time.monotonic()
        if self._subscribers.table is None:
            return
        databases = set(self._subscribers.databases())
        for known in set(self._windows) - databases:
            self._forget(known)
        await self._look_at_all(tasks, databases - busy, at_once)
        long_ago = time.monotonic() - 10 * self.LOOK_BACK_SECONDS
        self._heard = {channel: at for channel, at in self._heard.items() if at > long_ago}

    async def look_again(self, tasks: Tasks) -> None:
        """Look at the databases that did not answer."""
        await self._look_at_all(tasks, self.unanswered - self._busy, True)

    async def _look_at_all(self, tasks: Tasks, databases: Set[str], at_once: bool) -> None:
        async def look_at(database: str) -> None:
            self._busy.add(database)
            try:
                await self._look_at(database, at_once)
            finally:
                self._busy.discard(database)

        # Those that answered the last time go first, so that the others hold up nobody.
        order = sorted(databases, key=lambda database: database in self.unanswered)
        await tasks.each(look_at, order, self.TOGETHER)

    def _forget(self, database: str) -> None:
        self._windows.pop(database, None)
        self._pending.pop(database, None)
        self.unanswered.discard(database)

    async def _look_at(self, database: str, at_once: bool) -> None:
        window = self._windows.setdefault(database, Window(self._subscribers.table))
        try:
            known = window.highest
            result = await self._path.query(database, *window.query(self._look_back))
            rows = window.update(result, known)
        except ConnectionLost as exc:
            _logger.debug("No look at the database %s: %s", database, exc)
            if exc.cause.name == "database":
                self._forget(database)  # it was dropped
            else:
                self.unanswered.add(database)
            return
        at_once = at_once or database in self.unanswered
        self.unanswered.discard(database)
        now = time.monotonic()
        pending = self._pending.pop(database, [])
        found = None
        if rows is not None:
            found = [(number, key_of_row(channel), now) for number, channel in rows]
            if not at_once:
                # Whoever was notified of the channel since has found these rows, too.
                pending = [row for row in pending if self._heard.get(row[1], 0) <= row[2]]
                if self._subscribers.lacking(database, found, at_once, self._loop.deliver):
                    self._pending[database] = found
                found = []
            found = pending + found
        await self.wake(self._subscribers.lacking(database, found, at_once, self._loop.deliver))

    async def wake(self, wakers: List[Callable[[], Any]]) -> None:
        """Call each, at the rate that the settings allow and the process bears."""
        batch = max(1, int(self._settings.wakeups_per_second * self.BATCH_SECONDS))
        pause = batch / self._settings.wakeups_per_second
        for index, waker in enumerate(wakers, 1):
            try:
                waker()
            except Exception:  # any: those after it are woken all the same
                if self._throttle.due("waker"):
                    _logger.exception("A subscriber could not be woken.")
            self.woken += 1
            if index % batch == 0:
                await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Leave half of the processor's time to everybody else.

        Each subscriber queries, which is work for this process (the evented one has a single
        loop). One that is busy with other things as well is not waited for longer than a while.
        """
        began, used = time.monotonic(), time.process_time()
        for _ in range(self.MOST_PAUSES):
            await sleep(seconds)
            if time.process_time() - used < self.CPU_SHARE * (time.monotonic() - began):
                return

    # -- the jobs -----------------------------------------------------------------------------

    def trigger_jobs(self) -> None:
        """Have a cron listener's loop look at its jobs, whatever was missed."""
        self._skipped = self._quiet = 0
        for payload in self._subscribers.wakeups():
            self._loop.deliver("cron_trigger", payload)

    def poll_jobs(self) -> None:
        """The same while there is no listener; never rounds without end.

        A loop that has not taken the latest wake-up is still busy with the round before. It then
        pauses three times as long as that round took.
        """
        if self._loop.waiting:
            self._skipped = min(self._skipped + 1, 4)
        elif self._skipped:
            self._quiet, self._skipped = 3 * self._skipped, 0
        elif self._quiet:
            self._quiet -= 1
        else:
            self.trigger_jobs()
