"""What must hold, all the time and at the end of a life.

Contract: `check` is called every EVERY seconds and calls `Life.fail` for what does not hold. The times are those that
the documentation promises.
"""
from .standins import ServerError, addon

CALM = 3.0              # a NOTIFY arrives, and the client has its row, where nothing has happened for a minute
LATEST = 60.0           # everything else, after the last fault
LOST_AFTER = 12.5       # a connection on which nothing arrives is noticed: twice heartbeat_seconds, and an attempt
MOVED_AFTER = 40.0      # a pooled path that leads elsewhere is noticed
LISTENING_AFTER = 25.0  # the listener is listening again, after the last fault


class Holds:
    EVERY = 2.5

    def __init__(self, life):
        self.life = life
        self.bad_since = None
        self.connected, self.woken, self.logged = {}, [], []

    # -- what is counted -------------------------------------------------------------------------------------------

    def connects(self, now, info):
        # what a process makes: the direct connections of its listener to one host, and all others
        kind = (info.get("application_name") or "pooled").partition(" odoo ")[0]
        self.connected.setdefault((kind, info["host"]), []).append(now)

    def wakes(self, now):
        self.woken.append(now)

    def logs(self, now):
        self.logged.append(now)

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
            start = max(life.disturbed_until, browser.since)
            for row in list(due):
                if browser.shows_the_latest_only() and row.began < now - 50.0 and (
                        start > row.began - 1.0 or row.committed - row.began > 10.0):
                    life.passed(browser, [row])
                elif now - max(row.committed, start) > LATEST:
                    database = life.pooled_server().databases.get(browser.database)
                    if database is None or row not in database.rows or not browser.could_get(row):
                        life.passed(browser, [row])
                    else:
                        life.fail(f"{browser} lacks {row}, {now - max(row.committed, start):.0f} s after all was well"
                                  f" and {now - row.committed:.0f} s after its commit", subjects=(row,))
                        return

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
                self.bad_since = self.bad_since or now
                limit = MOVED_AFTER if elsewhere else LOST_AFTER
                if now - self.bad_since > limit:
                    life.fail(f"the listener is LISTENING, and for {now - self.bad_since:.0f} s no NOTIFY reaches it")
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
        pooler = life.pooler
        return pooler is not None and (len(pooler.clients) >= pooler.room or pooler.pool("postgres").failing)

    def check_bounds(self):
        life, now = self.life, self.life.kernel.now
        if len(life.connections) > 8 + len(life.notifiers):
            life.fail(f"{len(life.connections)} connections are open at once")
        attempts = [(times, 10.0, 45, f"connects ({kind} to {host})") for (kind, host), times in self.connected.items()
                    if kind != addon.notifier.APPLICATION_NAME]
        for times, seconds, most, what in (
                *attempts, (self.woken, 1.0, 530, "wake-ups"), (self.logged, 60.0, 40, "log lines")):
            while times and times[0] < now - seconds - self.EVERY:
                times.pop(0)
            if len(times) > most:
                life.fail(f"{len(times)} {what} in {seconds + self.EVERY:g} s")
        for server in (life.primary, life.other):
            waiting = [backend for backend in server.backends.values() if backend.waits is not None]
            logging_in = [backend for backend in server.backends.values() if not backend.ready and backend.waiting_since]
            if len(waiting) > 8 or len(logging_in) > 40:
                life.fail(f"{len(waiting)} statements and {len(logging_in)} log-ins wait on {server.name}")

    def check_end(self):
        life = self.life
        if life.broken is not None:
            return
        if life.listener.state.phase != addon.state.STOPPED:
            life.fail(f"the listener is {life.listener.state.phase} after its end")
        left = [thread.name for thread in life.kernel.threads if thread.process == "odoo" and thread.name in ("bus", "recovery")]
        if left:
            life.fail(f"threads are left: {', '.join(left)}")
        kept = [each for each in life.connections.values()
                if each.info.get("application_name") != addon.notifier.APPLICATION_NAME]
        if kept:
            life.fail(f"{len(kept)} connections are left open")
