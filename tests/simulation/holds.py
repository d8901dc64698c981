"""What must hold, all the time and at the end of a life.

Contract: `check` is called every EVERY seconds and calls `Life.fail` for what does not hold. The times are those that
the documentation promises.
"""
import collections

import greenlet

from .standins import Connection, ServerError, addon

LATEST = 60.0           # a row reaches its client, after its commit and after the last fault
POLLED_AFTER = 15.0     # the same while the listener is not listening: the table is polled every poll_seconds
CAUGHT_UP_AFTER = 10.0  # what was missed reaches its client, after the listener is listening again
LOST_AFTER = 15.0       # a connection on which nothing arrives is noticed: twice heartbeat_seconds, and some attempts
MOVED_AFTER = 40.0      # a pooled path that leads elsewhere is noticed
LISTENING_AFTER = 25.0  # the listener is listening again, after the last fault
LEFT_AFTER = 15.0       # what was queued has left, after the last fault
QUIET_AFTER = 75.0      # no warning is logged any more, after the last fault
GONE_AFTER = 30.0       # no LISTEN of a connection that was lost is left on a server, after the last fault
STATEMENT = 6.0         # seconds that a statement waits on a server, whatever became of who sent it


class Rate:
    """How often something may happen: `most` times in any `seconds`."""

    def __init__(self, life, what, most, seconds):
        self.life, self.what, self.most, self.seconds, self.times = life, what, most, seconds, collections.deque()

    def count(self):
        now, times = self.life.kernel.now, self.times
        times.append(now)
        while times[0] <= now - self.seconds:
            times.popleft()
        if len(times) > self.most:
            self.life.fail(f"{len(times)} {self.what} in {self.seconds:g} s")


class Holds:
    EVERY = 5.0

    def __init__(self, life):
        self.life = life
        self.bad_since = None       # (when, whether NOTIFYs go to another server)
        self.listening_since = 0.0
        self.failed_looks, self.look_failed_at = 0, 0.0
        self.rates = {}
        self.unsent = {}            # payload -> when its NOTIFY was accepted

    # -- what is counted -------------------------------------------------------------------------------------------

    def rate(self, what, most, seconds):
        if what not in self.rates:
            self.rates[what] = Rate(self.life, what, most, seconds)
        self.rates[what].count()

    def connects(self, info):
        # what a process makes: the direct connections of its listener to one host, and all others
        kind = (info.get("application_name") or "pooled").partition(" odoo ")[0].partition(" evented ")[0]
        if kind != addon.notifier.APPLICATION_NAME:
            self.rate(f"connects ({kind} to {info['host']})", 45, 10.0)
        if kind == "bus_alt_connection bus" and self.life.kernel.now > (self.life.listener.state.lost_at or 1e9) + 65.0:
            self.rate(f"connects to {info['host']} in an outage of more than a minute", 4, 12.0)

    def wakes(self, browser):
        if getattr(greenlet.getcurrent(), "name", "") == "recovery":
            self.rate("wake-ups by the recovery", self.life.batch, 0.045)
            looked_at = self.life.looked_at
            if browser.database != looked_at:
                self.life.fail(f"{browser} of {browser.database} is woken by a look at {looked_at}")

    def logs(self, level, text):
        self.rate("log lines", 40, 60.0)
        life = self.life
        if level != "INFO" and life.kernel.now > life.disturbed_until + QUIET_AFTER:
            life.fail(f"a warning while all is well: {text}")

    def accepted(self, payload):
        self.unsent.setdefault(payload, self.life.kernel.now)

    def left(self, payload):
        self.unsent.pop(payload, None)

    def enters(self, phase):
        if phase == addon.state.CONNECTING:
            self.bad_since = None
        elif phase == addon.state.LISTENING:
            self.listening_since = self.life.kernel.now

    # -- what is checked -------------------------------------------------------------------------------------------

    def check(self):
        life = self.life
        if life.broken is None:
            self.check_rows()
            self.check_listening()
            self.check_bounds()

    def check_rows(self):
        life, now = self.life, self.life.kernel.now
        for browser in life.browsers:
            due = life.due[browser]
            if not due:
                continue
            session = browser.session
            if session is None:
                continue
            start = max(life.pooled_disturbed_until, browser.since)
            for row in list(due):
                waits = now - max(row.committed, start)
                if browser.shows_the_latest_only() and row.began < now - 50.0 and (
                        start > row.began - 1.0 or row.committed - row.began > 10.0):
                    life.passed(browser, [row])
                elif waits > self.limit(row):
                    database = life.pooled_server().databases.get(browser.database)
                    if database is None or row not in database.rows or not browser.could_get(row):
                        life.passed(browser, [row])
                    else:
                        life.fail(f"{browser} lacks {row}, {waits:.0f} s after Odoo's own queries were well and"
                                  f" {now - row.committed:.0f} s after its commit", subjects=(row,))
                        return

    def limit(self, row):
        """How long after its commit, and after the last fault, a row may take."""
        life, now, listener = self.life, self.life.kernel.now, self.life.listener
        if listener.recovery.failed_looks != self.failed_looks:
            self.failed_looks, self.look_failed_at = listener.recovery.failed_looks, now
        if now - self.look_failed_at < LATEST or life.kernel.standing.get("odoo", 0.0) > now - LATEST:
            return LATEST
        lost_at = listener.state.lost_at
        if lost_at is not None:
            return POLLED_AFTER + max(0.0, lost_at - max(row.committed, life.pooled_disturbed_until))
        if row.committed < self.listening_since:
            return CAUGHT_UP_AFTER + self.listening_since - max(row.committed, min(
                life.pooled_disturbed_until, self.listening_since))
        return LATEST

    def check_listening(self):
        life, now = self.life, self.life.kernel.now
        phase = life.listener.state.phase
        if (addon.health.health()["status"] == "pass") != (phase == addon.state.LISTENING):
            life.fail(f"the listener is {phase}, and health says otherwise")
        if phase == addon.state.LISTENING:
            here, elsewhere = self.hears()
            if here or life.kernel.standing.get("odoo", 0.0) > now - 1.0:
                self.bad_since = None
            else:
                if self.bad_since is None or self.bad_since[1] != elsewhere:
                    self.bad_since = now, elsewhere
                # a fault in between may have kept the pooled path from answering
                seconds = now - max(self.bad_since[0], life.pooled_fault_at if elsewhere else 0.0)
                if seconds > (MOVED_AFTER if elsewhere else LOST_AFTER):
                    life.fail(f"the listener is LISTENING, and for {seconds:.0f} s no NOTIFY reaches it")
        else:
            since = max(life.disturbed_until, life.listener.state.lost_at)
            if now - since > LISTENING_AFTER:
                life.fail(f"the listener is {phase.upper()} {now - since:.0f} s after all was well")

    def hears(self):
        """(whether a NOTIFY through the pooled path reaches the listener, whether one of another server would)"""
        life = self.life
        reached, elsewhere = life.pooled_server(), False
        if self.nobody_can_tell(reached):
            return True, False
        for server in (life.primary, life.other):
            for backend in server.backends.values():
                if "imbus" in backend.listens and not (server.stopped or backend.stopped):
                    wire = backend.wire
                    if wire.open and not wire.forgotten and wire.path.state == "open":
                        if server is reached:
                            return True, False
                        elsewhere = True
        return False, elsewhere

    def nobody_can_tell(self, reached):
        """Whether the pooled path cannot be asked where it leads."""
        life = self.life
        try:
            if life.reach("postgres") is None or len(reached.backends) >= reached.room or reached.login_locked:
                return True
        except ServerError:
            return True
        if any(path.latency[1] > 0.3 for path in life.network.paths.values()):
            return True
        pooler = life.pooler
        return pooler is not None and (len(pooler.clients) >= pooler.room or pooler.pool("postgres").failing)

    def check_bounds(self):
        life, now = self.life, self.life.kernel.now
        if len(life.connections) > 8 + len(life.notifiers):
            life.fail(f"{len(life.connections)} connections are open at once")
        for server in (life.primary, life.other):
            logging_in = listening = 0
            for backend in server.backends.values():
                if backend.waits is not None and now - backend.waiting_since > STATEMENT and not server.stopped:
                    life.fail(f"a statement waits on {server.name} for {now - backend.waiting_since:.0f} s")
                own = isinstance(backend.wire.client, Connection) and not backend.wire.forgotten
                if own and backend.waiting_since and not backend.ready:
                    logging_in += 0.25 if " bus " in backend.application else 1     # the listener's own is repeated
                listening += "imbus" in backend.listens
            if listening > 1 and now > life.disturbed_until + GONE_AFTER:
                life.fail(f"{listening} LISTENs are left on {server.name}")
            if logging_in > 8 + 2 * len(life.notifiers):
                life.fail(f"{logging_in} log-ins wait on {server.name}")
        if now > life.disturbed_until + LEFT_AFTER:
            for payload, since in self.unsent.items():
                if now - since > LEFT_AFTER:
                    life.fail(f"a NOTIFY has not left for {now - since:.0f} s: {payload}")
                    break

    def check_end(self):
        life = self.life
        if life.broken is not None:
            return
        if life.listener.state.phase != addon.state.STOPPED:
            life.fail(f"the listener is {life.listener.state.phase} after its end")
        left = [each.name for each in life.kernel.threads if each.name in ("bus", "recovery")]
        if left:
            life.fail(f"threads are left: {', '.join(left)}")
        kept = [each for each in life.connections.values()
                if each.info.get("application_name") != addon.notifier.APPLICATION_NAME]
        if kept:
            life.fail(f"{len(kept)} connections are left open")
