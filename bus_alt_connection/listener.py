# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The listener: holds the one direct connection, and replaces it whenever it is lost.

Contract: whatever happens to PostgreSQL, the network or the settings, ``Listener`` goes on trying
and the loop that waits on its ``Mailbox`` never sees an error. A NOTIFY is only ever a hint that
the table has news; what was missed is found by ``healing``.

Two detectors find a loss, independent of each other: TCP (``keepalives*``, ``tcp_user_timeout``)
and a heartbeat, a NOTIFY to itself on a private channel, which proves all that a notification
needs: network, server, LISTEN.
"""

import logging
import os
import random
import socket
import threading
import time

from psycopg2 import extensions

import odoo

from . import link
from .backoff import Backoff
from .healing import Attendant
from .link import Link, Lost, Stopped
from .mailbox import Mailbox
from .settings import Invalid, Settings
from .trouble import Trouble, explain

_logger = logging.getLogger(__name__)

BEAT = "beat"  # a heartbeat's payload on the private channel


class Listener(threading.Thread):
    """Keeps one LISTENing connection.

    :param owner: whose listener it is, see ``dispatcher.Bus`` and ``cron.Cron``
    """

    def __init__(self, owner):
        super(Listener, self).__init__(name="bus_alt_connection.%s" % owner.name)
        self.daemon = True
        self.owner = owner
        owner.listener = self
        self.settings = Settings()
        self.trouble = Trouble(owner.name)
        self.mailbox = Mailbox(on_close=self.stop)
        self.channels = []
        self.private = "bus_alt_connection_%s" % "".join(random.sample("abcdefghijklmnop", 12))
        self.session = None  # the connection in force: a Session, or None while there is none
        self.rejected = []  # places that NOTIFYs did not reach, the latest last
        self.lost_at = time.monotonic()  # since when there is no session, or None
        self.connections = 0
        self.received = 0
        self.woken = 0  # who waits, by the attendant
        self.degraded_since = time.monotonic()  # since when nothing is proven, or None
        self.degraded_seconds = 0.0  # in all, until degraded_since
        self.last_received = None
        self.round_trip = None  # seconds, of the latest heartbeat
        self._reader, self._writer = socket.socketpair()
        self.changed = threading.Event()
        self._stopping = False

    # -- what the loop's thread calls ---------------------------------------------------------

    def listen(self, channel):
        """Name a channel; from ``begin`` on what arrives there is found in the mailbox."""
        self.channels.append(channel)

    def begin(self):
        """Begin to listen, as LISTEN does when its transaction commits."""
        if self.channels and self.ident is None:
            self.start()

    def stop(self):
        """End, without waiting for it."""
        self._stopping = True
        self.changed.set()
        if self.ident is None:  # it never listened
            self._close_signal()
            return
        try:
            self._writer.send(b".")
        except OSError:
            pass  # it has ended already

    def _close_signal(self):
        self._reader.close()
        self._writer.close()

    # -- what the attendant calls -------------------------------------------------------------

    @property
    def stopping(self):
        return self._stopping

    def wait_for_change(self, timeout):
        """Wait until the session comes, goes or proves itself, or until the timeout (seconds)."""
        self.changed.wait(timeout)
        self.changed.clear()

    # -- the thread ---------------------------------------------------------------------------

    def run(self):
        Attendant(self).start()
        backoff = Backoff(self.settings.retry_max_seconds)
        try:
            while not self._stopping:
                begun = time.monotonic()
                try:
                    self._hold_a_session()
                except Stopped:
                    break
                except (Lost, Invalid) as exc:
                    self.trouble.lost(exc, had_one=self.lost_at > begun)
                except Exception:  # a defect of this addon must not silence the bus
                    self.trouble.defect("The %s listener failed and is started again")
                pause = begun + backoff.next() - time.monotonic()
                if pause > 0 and link.wait([self._reader.fileno()], [], pause):
                    break
        finally:
            self._close_signal()

    def _hold_a_session(self):
        """Connect, LISTEN, and pass on what arrives until the connection is lost."""
        session = self._connect()
        try:
            self.session = session
            self._report_connection(session)
            self.changed.set()
            session.serve()
        except Lost as exc:
            raise Lost(exc.reason, session.place)
        finally:
            self.session = None
            self.lost_at = time.monotonic()
            if self.degraded_since is None:
                self.degraded_since = self.lost_at
            self.changed.set()
            session.close()

    def _connect(self):
        """:return: a Session on the first host that takes a LISTEN"""
        problems = []
        told = self._told() if self.settings.auto else None
        hosts = [(link.place(info), info) for info in self.settings.direct(told)]
        order = {place: number for number, place in enumerate(self.rejected)}
        hosts.sort(key=lambda host: order.get(host[0], -1))
        for place, info in hosts:
            try:
                session = Session(self, info)
                session.replaceable = self.settings.auto or len(hosts) > 1
                return session
            except Lost as exc:
                problems.append(Lost(exc.reason, place))
        # Of several hosts the one to be mended is told of, not the one that is just away.
        raise max(problems, key=lambda exc: explain(exc.reason)[0])

    def _told(self):
        """:return: (host, port) that PostgreSQL tells, asked through Odoo's own connection"""
        try:
            with link.pooled(self.settings, wakeup=self._reader.fileno()) as pooled:
                return link.told_address(pooled)
        except Lost as exc:
            place = link.place(self.settings.pooled())
            raise Lost(exc.reason, place + ", to ask for PostgreSQL's address")

    def _report_connection(self, session):
        since, self.lost_at = self.lost_at, None
        # A loss is noticed late: what was sent from here on may not have been heard.
        unnoticed = self.settings.heartbeat_seconds + self.settings.heartbeat_timeout_seconds
        session.deaf_since = since - unnoticed
        self.trouble.over()
        if self.connections == 0:
            _logger.info("The %s listener is connected to %s.", self.owner.name, session)
        else:
            _logger.info(
                "The %s listener is back, connected to %s, after %.2f s.",
                self.owner.name,
                session,
                time.monotonic() - since,
            )
        self.connections += 1

    def reject(self, session, reason):
        """Give up a session that NOTIFYs do not reach: its host is the last to be tried again."""
        self.rejected = [place for place in self.rejected if place != session.place]
        self.rejected.append(session.place)
        session.rejected = reason

    def proved(self):
        """A NOTIFY that took the pooled path has arrived: the bus is not degraded any more."""
        if self.degraded_since is not None:
            self.degraded_seconds += time.monotonic() - self.degraded_since
            self.degraded_since = None
        self.changed.set()

    def arrived(self, notification):
        """Pass on one notification of a channel that upstream listens to."""
        self.received += 1
        self.last_received = time.monotonic()
        try:
            payload = self.owner.accept(notification.payload)
        except (ValueError, RecursionError):
            self.trouble.bad_payload(notification.channel, notification.payload)
            return
        if payload is not None:
            self.deliver(notification.channel, payload)

    def deliver(self, channel, payload):
        """Hand a payload to upstream's loop, as if it had arrived."""
        self.mailbox.deliver(extensions.Notify(0, channel, payload))


class Session(object):
    """One connection's life as a listener, from LISTEN until it is lost.

    :raises Lost: if it cannot be made, or LISTEN is not possible there
    """

    def __init__(self, listener, info):
        self._listener = listener
        self._settings = listener.settings
        self._link = Link(
            dict(info, **self._tcp()),
            tcp_timeout=self._settings.tcp_timeout_seconds,
            timeout=self._settings.connect_timeout_seconds,
            wakeup=listener._reader.fileno(),
        )
        self.place = link.place(info)
        self.proven = False  # a NOTIFY that took the pooled path has arrived here
        self.replaceable = False  # whether another host may be the right one
        self.rejected = None  # why it is not to be kept
        self.deaf_since = time.monotonic()  # set by the listener
        self.token = "probe %016x" % random.getrandbits(64)
        self._expected = {}  # payload on the private channel -> time.monotonic() when it was sent
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def __str__(self):
        via = "through a pooler" if self.pooler else "backend pid %s" % self.backend_pid
        return "%s (%s)" % (self.place, via)

    def _tcp(self):
        timeout = self._settings.heartbeat_timeout_seconds
        options = {
            "application_name": "bus_alt_connection %s %s %d"
            % (self._listener.owner.name, "evented" if odoo.evented else "odoo", os.getpid()),
            "keepalives": 1,
            "keepalives_idle": max(1, int(self._settings.heartbeat_seconds)),
            "keepalives_interval": max(1, int(timeout / 3)),
            "keepalives_count": 3,
        }
        if extensions.libpq_version() >= 120000:
            options["tcp_user_timeout"] = int(timeout * 1000)
        return options

    def _prepare(self):
        row = self._link.query(
            "SELECT pg_backend_pid(), pg_is_in_recovery(), current_database(), " + link.STARTED
        )[0]
        self.backend_pid, in_recovery, self.database, self.server_started = row
        if in_recovery:
            raise Lost("the server is a standby (in recovery mode), where LISTEN is impossible")
        # A pooler answers with a process id of its own making.
        self.pooler = self.backend_pid != self._link.backend_pid
        if not self.pooler:
            # Unknown to PostgreSQL before 14. Left alone on a pooler's connection, which others use.
            self._link.query(
                "SELECT set_config(name, '0', false) FROM pg_settings"
                " WHERE name = 'idle_session_timeout'"
            )
        names = [self._listener.private] + self._listener.channels
        self._link.query("".join('LISTEN "%s";' % name.replace('"', '""') for name in names))

    def serve(self):
        """Pass on what arrives, and see that heartbeats come back.

        :raises Lost: once the connection is lost
        """
        every = self._settings.heartbeat_seconds
        longest = self._settings.heartbeat_timeout_seconds
        beat_at = time.monotonic() + every
        while True:
            if self.rejected:
                raise Lost(self.rejected)
            beating = self._expected.get(BEAT)
            due = beat_at if beating is None else beating + longest
            # Read before judging: this process itself may have been stopped for a while.
            if self._link.wait(due - time.monotonic()) or self._link.wait(0):
                self._receive()
            elif beating is not None:
                raise Lost("no heartbeat came back within %g s, the path is silent" % longest)
            if BEAT not in self._expected and time.monotonic() >= beat_at:
                self.expect(BEAT)
                self._link.send("SELECT pg_notify(%s, %s)", (self._listener.private, BEAT))
                beat_at = time.monotonic() + every

    def _receive(self):
        for notification in self._link.receive():
            if notification.channel != self._listener.private:
                self._listener.arrived(notification)
            elif notification.payload in self._expected:
                self._came_back(notification.payload)

    def _came_back(self, payload):
        sent = self._expected.pop(payload)
        if payload == BEAT:
            self._listener.round_trip = time.monotonic() - sent
        else:
            self.proven = True
            self._listener.proved()

    def expect(self, payload):
        """Say that a NOTIFY with this payload is about to be sent on the private channel."""
        self._expected[payload] = time.monotonic()

    def close(self):
        self._link.close()
