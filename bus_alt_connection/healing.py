# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What happens around the listening connection, all of it on Odoo's pooled path.

* After each connect a probe: a NOTIFY that takes the pooled path, as all of Odoo's do, has to
  arrive at the listener. It proves that both reach the same database, and that the pooled path
  serves again.
* Then the catch-up: what was notified while nobody listened is in the table, so everyone who
  waits is woken once, spread out, those first on whose channels there is something.
* While there is no proven listener, the table is asked for news on a slow clock.
"""

import logging
import random
import threading
import time

import psycopg2

from . import diagnosis, link
from .link import Lost

_logger = logging.getLogger(__name__)

# The channels that gained rows in the last so many seconds. The id has an index, the date has not.
MISSED = (
    "SELECT DISTINCT channel FROM (SELECT channel, create_date FROM {} ORDER BY id DESC LIMIT 10000)"
    " AS latest WHERE create_date > (now() AT TIME ZONE 'UTC') - %s * interval '1 second'"
)


class Attendant(threading.Thread):
    """Attends one listener.

    :param listener: a ``listener.Listener``
    """

    # While something is to be done that the pooled path refuses, it is tried this often (seconds).
    RETRY_SECONDS = 0.2
    # A database that refuses this long is woken all the same: when in doubt, wake.
    PATIENCE_SECONDS = 120
    # Between batches of wake-ups, and how many at most.
    BREATH_SECONDS = 0.05
    BREATHS = 8
    # Of the processor's time, for the catch-up and all that goes on beside it.
    SHARE = 0.5
    # How long after a loss the slow clock starts: most losses are mended before.
    GRACE_SECONDS = 1.0

    def __init__(self, listener):
        super(Attendant, self).__init__(name=listener.name + ".attendant")
        self.daemon = True
        self._listener = listener
        self._settings = listener.settings
        self._caught_up = None  # the session whose catch-up is done
        self._news = {}  # database -> News, while degraded
        self._news_at = 0.0
        self._probe_at = 0.0

    def run(self):
        while not self._listener.stopping:
            try:
                pause = self._attend()
            except (Lost, psycopg2.Error):
                # The pooled path is dark. It concerns all of Odoo, which says so itself.
                pause = self.RETRY_SECONDS
            except Exception:  # a defect of this addon must not silence the bus
                self._listener.trouble.defect("The %s listener's attendant failed and goes on")
                pause = self._settings.poll_seconds
            self._listener.wait_for_change(pause)

    def _attend(self):
        """Do what is due.

        :return: seconds until something may be due again, None for a change only
        :raises Lost: if the pooled path is dark
        """
        session = self._listener.session
        if session is not None and not session.proven and time.monotonic() >= self._probe_at:
            self._probe(session)
        if session is None or not session.proven:
            return self._ask_for_news()
        if self._caught_up is not session:
            self._catch_up(session)
            self._caught_up = session
        self._news.clear()
        return None

    # -- the probe ----------------------------------------------------------------------------

    def _probe(self, session):
        listener = self._listener
        with link.pooled(self._settings) as pooled:
            session.expect(session.token)
            database, started = pooled.query(
                "SELECT current_database(), " + link.STARTED + ", pg_notify(%s, %s)",
                (listener.private, session.token),
            )[0][:2]
        deadline = time.monotonic() + self._settings.probe_timeout_seconds
        while not session.proven and listener.session is session:
            if time.monotonic() >= deadline:
                self._probe_at = time.monotonic() + self._settings.poll_seconds
                self._misrouted(session, (started, database))
                return
            listener.wait_for_change(deadline - time.monotonic())
        if session.proven:
            listener.trouble.over()
            if self._settings.auto:
                _logger.info(
                    "The %s listener keeps %s, the address that PostgreSQL told: a NOTIFY through"
                    " Odoo's own address arrived there.",
                    listener.owner.name,
                    session,
                )

    def _misrouted(self, session, notifying):
        """Say what keeps the NOTIFYs from the listener, and what to change."""
        found = diagnosis.undelivered(
            session.place,
            listening=(session.server_started, session.database),
            notifying=notifying,
            pooler=session.pooler,
            seconds=self._settings.probe_timeout_seconds,
        )
        address = ""
        if found.cause in ("pooler", "other server") and not self._settings.auto:
            with link.pooled(self._settings) as pooled:
                told = link.told_address(pooled)
            address = (
                " (PostgreSQL says of itself: imdispatcher_db_host = %s, imdispatcher_db_port = %s)"
                % told
            )
        self._listener.trouble.misrouted(
            found,
            "%s. %s%s. Until then the bus is asked for news every %g s."
            % (found.text, found.remedy, address, self._settings.poll_seconds),
        )
        if session.replaceable:
            self._listener.reject(session, found.text)

    # -- the catch-up -------------------------------------------------------------------------

    def _catch_up(self, session):
        """Wake everyone who waits, database by database, once the pooled path serves it."""
        waiting = self._listener.owner.waiting()
        count = sum(map(len, waiting.values()))
        give_up = time.monotonic() + self.PATIENCE_SECONDS
        while waiting and self._listener.session is session and not self._listener.stopping:
            for database in list(waiting):
                if self._serves(database) or time.monotonic() > give_up:
                    self._wake(waiting.pop(database), self._missed(database, session.deaf_since))
            if waiting:
                self._listener.wait_for_change(self.RETRY_SECONDS)
        if not waiting and self._listener.connections > 1:
            _logger.info("The %s listener woke %d that waited.", self._listener.owner.name, count)

    def _serves(self, database):
        """Whether the pooled path answers. A subscriber that is woken before would be cut off."""
        try:
            with link.pooled(self._settings, database) as pooled:
                pooled.query("SELECT 1")
            return True
        except Lost:
            return False

    def _missed(self, database, since):
        """:return: set of the channels that gained rows since a time.monotonic(), if it is told"""
        owner = self._listener.owner
        if not owner.table or database is None:
            return set()
        try:
            with link.pooled(self._settings, database) as pooled:
                rows = pooled.query(MISSED.format(owner.table), (time.monotonic() - since,))
        except Lost:
            return set()  # all the same, everyone is woken
        return owner.keys(channel for channel, in rows)

    def _wake(self, wakers, first=frozenset()):
        """Call each, at the rate that the settings allow and the process bears.

        :param dict wakers: function -> list of channels
        :param set first: whoever waits on one of these channels comes first, the rest at random
        """
        order = list(wakers)
        random.shuffle(order)
        order.sort(key=lambda wake: first.isdisjoint(wakers[wake]))
        batch = max(1, int(self._settings.wakeups_per_second * self.BREATH_SECONDS))
        for index, wake in enumerate(order, 1):
            wake()
            self._listener.woken += 1
            if index % batch == 0:
                self._breathe()

    def _breathe(self):
        """Leave half of the processor's time to everybody else: nobody awaits those who are woken.

        Each of them queries, which is work for this process (the evented one has a single loop).
        One that is busy with other things as well is not waited for longer than a few breaths.
        """
        began, used = time.monotonic(), time.process_time()
        for _ in range(self.BREATHS):
            time.sleep(self.BREATH_SECONDS)
            if time.process_time() - used < self.SHARE * (time.monotonic() - began):
                return

    # -- the slow clock -----------------------------------------------------------------------

    def _ask_for_news(self):
        """:return: seconds until it is to be called again"""
        now = time.monotonic()
        lost_at = self._listener.lost_at
        if lost_at is not None and now < lost_at + self.GRACE_SECONDS:
            return lost_at + self.GRACE_SECONDS - now
        if now >= self._news_at:
            self._news_at = now + self._settings.poll_seconds
            owner = self._listener.owner
            if self._listener.session is None:
                self._listener.trouble.degraded(self._settings.poll_seconds)
            for database, wakers in owner.waiting().items():
                try:
                    self._ask(owner, database, wakers)
                except Lost:
                    pass  # this database is dark as well; the next may answer
        return min(self._settings.poll_seconds, max(0.05, self._news_at - time.monotonic()))

    def _ask(self, owner, database, wakers):
        if not owner.table or database is None:
            if self._serves(database):
                self._wake(wakers)
            return
        first = database not in self._news
        news = self._news.setdefault(database, News(owner.table))
        with link.pooled(self._settings, database) as pooled:
            channels = news.channels(pooled)
        if first:  # nobody knows how long nothing arrived
            self._wake(wakers)
        elif channels:
            owner.news(channels)


class News(object):
    """The rows that a table of notifications gained.

    :param str table: its name
    """

    # A transaction may commit a lower id after a higher one was seen; so long it is looked for.
    OVERLAP_SECONDS = 30

    def __init__(self, table):
        self._table = table
        self._floor = None
        self._seen = {}  # id -> time.monotonic() when it was first seen

    def channels(self, pooled):
        """:return: list of str, the ``channel`` of each row that is new since the last call"""
        now = time.monotonic()
        if self._floor is None:
            self._floor = pooled.query("SELECT coalesce(max(id), 0) FROM %s" % self._table)[0][0]
            return []
        rows = pooled.query(
            "SELECT id, channel FROM %s WHERE id > %%s ORDER BY id" % self._table, (self._floor,)
        )
        fresh = [channel for number, channel in rows if number not in self._seen]
        for number, _channel in rows:
            if now - self._seen.setdefault(number, now) < self.OVERLAP_SECONDS:
                break
            self._floor = number
        for number, _channel in rows:
            self._seen.setdefault(number, now)
        self._seen = {number: at for number, at in self._seen.items() if number > self._floor}
        return fresh
