"""The addon without one of its mechanisms, each switched off from outside, and causes of old faults put back.

Contract: `without(name)` has the addon run so meanwhile. A mechanism that no seed misses is not tested, or not needed.
"""
import contextlib

from .standins import addon, load


def replaced(owner, name, value):
    return [(owner, name, value)]


def heartbeat():
    def beat(self):
        self.beat_at = addon.runtime.monotonic() + self._every
    return replaced(addon.session.Session, "beat", beat)


def listening_channels():
    beat = addon.session.Session.beat

    def without_comparing(self):
        try:
            beat(self)
        except addon.errors.ConnectionLost as exc:
            if "the LISTEN was removed" not in exc.reason:
                raise
    return replaced(addon.session.Session, "beat", without_comparing)


def keepalives():
    return replaced(addon.session, "tcp_parameters", lambda every: {})


def server_keepalives():
    return replaced(addon.session, "server_settings", lambda every: "SELECT 1")


def identity():
    return replaced(addon.listener.Listener, "check_path", lambda self, path: None)


def proof():
    return replaced(addon.listener.Listener, "_verify", lambda self, session: None)


def look_when(condition):
    look = addon.recovery.Recovery.look

    def some_looks(self, name, database, now, catching_up):
        if condition(self._listener.state, catching_up):
            look(self, name, database, now, catching_up)
    return replaced(addon.recovery.Recovery, "look", some_looks)


def catch_up():
    return look_when(lambda state, catching_up: not (catching_up and state.lost_at is None))


def poll():
    return look_when(lambda state, catching_up: state.lost_at is None)


def look():
    return look_when(lambda state, catching_up: catching_up)


def history():
    from . import clients
    return replaced(clients.Websocket, "HISTORY", 10.0)


def overlap():
    return [*replaced(addon.recovery.Recovery, "STRAGGLER_SECONDS", 0.0),
            *replaced(addon.recovery.Recovery, "OVERLAP_SECONDS", 0.0)]


def server_limit():
    query = addon.link.Link.query

    def without_limit(self, sql, parameters=None, timeout=None, server_limit=None):
        return query(self, sql, parameters, timeout)
    return replaced(addon.link.Link, "query", without_limit)


def queue():
    def drop(self, statements):
        self.dropped += len(statements)
    return replaced(addon.notifier.Notifier, "_enqueue", drop)


def retry_on_kept():
    return replaced(addon.errors.ConnectionLost, "broken", False)


def backoff():
    return replaced(addon.runtime.Backoff, "next", lambda self: 0.0)


def slow_backoff():
    return replaced(addon.runtime.Backoff, "SLOW", (0.3, 0.6))


def pace():
    return replaced(addon.recovery.Recovery, "BATCH_SECONDS", 0.0)


def throttle():
    return replaced(addon.runtime.Throttle, "due", lambda self, kind: True)


def payload_check():
    return replaced(addon.dispatcher.Subscribers, "accept", lambda self, channel, payload, report: True)


def rejected_last():
    """An endpoint that NOTIFYs do not reach is tried first again."""
    verify = addon.listener.Listener._verify

    def forgetting(self, session):
        try:
            verify(self, session)
        finally:
            self._rejected = []
    return replaced(addon.listener.Listener, "_verify", forgetting)


def moved_name():
    """The kept connections of the pooled path stay where its name led when they were made."""
    return replaced(addon.pooled.PooledPath, "identity", lambda self: self._identity(""))


def log_in_continued():
    open_ = addon.pooled.PooledPath._open

    def always_anew(self, *args):
        for link in self._started.values():
            link.close()
        self._started.clear()
        return open_(self, *args)
    return replaced(addon.pooled.PooledPath, "_open", always_anew)


def standby():
    """A standby is taken for a primary."""
    run = addon.pooled.PooledPath.query

    def never_standby(self, *args, **kwargs):
        return [row if len(row) not in (3, 4) or row[0] is not True else (False, *row[1:])
                for row in run(self, *args, **kwargs)]
    return replaced(addon.pooled.PooledPath, "query", never_standby)


# -- what was wrong before ---------------------------------------------------------------------------------------

def seen_before_woken():
    """A row counts as seen before its clients are woken, and a loss ends the waking."""
    look = addon.recovery.Recovery.look
    wakers = addon.dispatcher.Subscribers.wakers

    def marking_look(self, name, database, now, catching_up):
        session = self._listener.session

        def some_wakers(subscribers, *args):
            found = wakers(subscribers, *args)
            return [(lambda wake=wake: wake() if self._listener.session is session else None) for wake in found]
        addon.dispatcher.Subscribers.wakers = some_wakers
        try:
            look(self, name, database, now, catching_up)
        finally:
            addon.dispatcher.Subscribers.wakers = wakers
        database.marks[:] = database.marks[-1:]
    return [*replaced(addon.recovery.Recovery, "look", marking_look),
            *replaced(addon.recovery.Recovery, "STRAGGLER_SECONDS", 0.0)]


def all_databases():
    """Every client is woken, whatever its database."""
    def everybody(self, database, ids, deliver):
        by_channel, names = self._by_channel(), {channel[0] for channel in self._by_channel()}
        found = {}
        for name in sorted(names):
            channels = {addon.dispatcher.json.dumps(each, separators=(",", ":")): [2**40]
                        for each in by_channel if each[0] == name}
            found.update(dict.fromkeys(wakers(self, name, channels, deliver)))
        return list(found) if ids or ids is None else []
    wakers = addon.dispatcher.Subscribers.wakers
    return replaced(addon.dispatcher.Subscribers, "wakers", everybody)


MECHANISMS = {
    "heartbeat": heartbeat, "pg_listening_channels": listening_channels, "keepalives": keepalives,
    "server-keepalives": server_keepalives,
    "identity": identity, "proof": proof, "catch-up": catch_up, "poll": poll, "look": look, "history": history,
    "overlap": overlap, "server-limit": server_limit, "queue": queue, "retry": retry_on_kept, "backoff": backoff,
    "slow-backoff": slow_backoff, "pace": pace, "throttle": throttle, "payload-check": payload_check,
    "log-in-continued": log_in_continued, "rejected-last": rejected_last, "moved-name": moved_name, "standby": standby,
    "seen-after-woken": seen_before_woken, "one-database": all_databases,
}


@contextlib.contextmanager
def without(name):
    """Have the addon run without this mechanism; with None as it is."""
    load()
    changes = MECHANISMS[name]() if name else []
    before = [(owner, attribute, getattr(owner, attribute)) for owner, attribute, _ in changes]
    try:
        for owner, attribute, value in changes:
            setattr(owner, attribute, value)
        yield
    finally:
        for owner, attribute, value in before:
            setattr(owner, attribute, value)
