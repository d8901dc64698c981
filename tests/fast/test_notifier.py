"""The sending half without a server: what is queued in which order, and what a caller gets to see."""
import pytest

from bus_alt_connection import endpoints, notifier, pooled, runtime
from bus_alt_connection.errors import ConnectionLost, TimedOut
from bus_alt_connection.notifier import Notifier


class Refused(Exception):
    pgcode = "22023"        # payload string too long


class Server:
    """What a link leads to: `sent` are the payloads that left, `away` and `hangs` what becomes of the others."""

    def __init__(self):
        self.sent, self.away, self.hangs, self.refuses = [], False, False, set()
        self.links, self.opened = [], 0
        self.before = lambda payload: None

    @property
    def closed(self):
        """How many of those that were open were closed."""
        return sum(link.closed for link in self.links) - (len(self.links) - self.opened)

    def link(self, info, timeout):
        self.links.append(Link(self))
        return self.links[-1]


class Link:
    usable, answered = True, False

    def __init__(self, server):
        self.server, self.broken = server, False

    def connect(self, timeout, host_timeout):
        assert 0 < timeout <= 5
        if self.server.away:
            raise ConnectionLost("Connection refused")
        self.server.opened += 1

    def query(self, sql, parameters, timeout, server_limit):
        assert 0 < server_limit < timeout <= 5
        payload, = parameters
        self.server.before(payload)
        if self.server.hangs:
            self.usable = False
            raise TimedOut("no answer in time (timeout)")
        if self.server.away or self.broken:
            self.usable = False
            raise ConnectionLost("server closed the connection unexpectedly")
        if payload in self.server.refuses:
            raise ConnectionLost("payload string too long") from Refused()
        self.server.sent.append(payload)

    def close(self):
        self.closed, self.usable = True, False

    closed = False


def statements(*payloads):
    return [("NOTIFY imbus, %s", (payload,)) for payload in payloads]


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(pooled, "Link", server.link)
    monkeypatch.setattr(endpoints, "resolve", lambda info: [info])
    return server


@pytest.fixture
def threads(monkeypatch):
    """What would be threads, to be run by the test."""
    threads = []
    monkeypatch.setattr(runtime, "start_thread", lambda target, name: threads.append(target))
    return threads


@pytest.fixture
def ours(server, threads, clock):
    return Notifier(5.0)


def queued(ours):
    return [parameters[0] for _, parameters in ours.queue.values()]


def retry(server, threads):
    """The server is back: the thread sends what is queued, and ends."""
    server.away = server.hangs = False
    thread, = threads
    del threads[:]
    thread()


def test_one_connection_is_kept(ours, server, threads, clock):
    for payload in "123":
        ours.send(statements(payload))
    assert server.sent == list("123") and (server.opened, ours.path.connections, ours.sent) == (1, 1, 3)
    assert not threads
    ours.close_idle(Notifier.IDLE_SECONDS - 1)
    assert not server.closed
    clock.now += Notifier.IDLE_SECONDS
    ours.close_idle()
    assert server.closed == 1
    ours.send(statements("4"))
    assert server.opened == 2


def test_a_kept_connection_that_is_gone_is_made_anew(ours, server):
    ours.send(statements("1"))
    server.links[0].broken = True
    ours.send(statements("2"))
    assert server.sent == ["1", "2"] and (server.opened, server.closed) == (2, 1)


def test_what_cannot_leave_is_queued_in_its_order(ours, server, threads):
    server.away = True
    ours.send(statements("1", "2"))     # no error of the caller's
    server.away = False
    ours.send(statements("3"))          # not before those that wait
    assert queued(ours) == ["1", "2", "3"] and not server.sent and len(threads) == 1
    retry(server, threads)
    assert server.sent == ["1", "2", "3"] and not ours.queue
    ours.send(statements("4"))
    assert server.sent[-1] == "4"


def test_equal_ones_are_one(ours, server):
    server.away = True
    for payload in "12122":
        ours.send(statements(payload))
    ours.send([("NOTIFY cron_trigger, %s", ("1",))])    # another channel
    assert queued(ours) == ["1", "2", "1"]


def test_one_that_cannot_leave_stays_the_first(ours, server, threads, clock):
    server.away = True
    ours.send(statements("1", "2"))
    seen = []

    def sleep(seconds):
        seen.append((seconds, queued(ours)))
        if len(seen) == 20:
            server.away = False
    runtime.sleep = sleep       # the fixture puts it back
    threads.pop()()
    assert {tuple(waiting) for _, waiting in seen} == {("1", "2")}
    assert min(seconds for seconds, _ in seen) > 0 and server.sent == ["1", "2"]


@pytest.mark.parametrize("fails", [False, True])
def test_one_that_is_on_its_way_is_not_equal(ours, server, threads, fails):
    """It may arrive before the rows of the second are committed: then nobody would tell of them."""
    server.away = True
    ours.send(statements("1"))

    def before(payload):
        server.before = lambda payload: None
        ours.send(statements("1"))
        server.away = fails
    server.before = before
    runtime.sleep = lambda seconds: setattr(server, "away", False)
    retry(server, threads)
    assert server.sent == (["1"] if fails else ["1", "1"])      # neither has left: one is enough


def test_the_oldest_are_dropped_when_too_many_wait(ours, server, threads, monkeypatch):
    monkeypatch.setattr(Notifier, "LIMIT", 3)
    server.away = True
    ours.send(statements(*"12345"))
    assert queued(ours) == ["3", "4", "5"] and ours.dropped == 2
    ours.send(statements("5"))      # an equal one takes no place
    assert queued(ours) == ["3", "4", "5"]

    def before(payload):        # more come while one is sent
        server.before = lambda payload: None
        ours.send(statements(*"6789"))
    server.before = before
    retry(server, threads)
    assert server.sent == ["3", "7", "8", "9"]


def test_a_refusal_is_the_callers_and_the_others_leave(ours, server, threads):
    server.refuses = {"2"}
    with pytest.raises(Refused):
        ours.send(statements("1", "2", "3"))
    assert server.sent == ["1", "3"] and not ours.queue and not threads


def test_a_refusal_of_a_queued_one_keeps_none_behind_it(ours, server, threads):
    server.away = True
    ours.send(statements("1", "2", "3"))
    server.refuses = {"2"}
    retry(server, threads)
    assert server.sent == ["1", "3"] and ours.dropped == 1


def test_parameters_that_do_not_fit_are_the_callers(ours, server):
    with pytest.raises(ValueError):
        ours.send([("NOTIFY imbus, %s", ())])
    assert not ours.queue


def test_what_was_not_answered_is_not_sent_twice_at_once(ours, server, threads):
    server.hangs = True
    ours.send(statements("1"))
    assert queued(ours) == ["1"] and (server.opened, server.closed) == (1, 1)
    retry(server, threads)
    assert server.sent == ["1"]


class Killed(BaseException):
    """As gevent ends a greenlet."""


def test_who_is_ended_meanwhile_has_it_queued(ours, server, threads):
    ours.send(statements("1"))
    link = server.links[0]

    def end(payload):
        link.usable = False     # the answer is on its way
        raise Killed()
    server.before = end
    with pytest.raises(Killed):
        ours.send(statements("2", "3"))
    assert queued(ours) == ["2", "3"] and server.closed == 1
    server.before = lambda payload: None
    retry(server, threads)
    assert server.sent == ["1", "2", "3"]


def test_a_system_without_threads(ours, server, monkeypatch):
    def full(target, name):
        raise RuntimeError("can't start new thread")
    monkeypatch.setattr(runtime, "start_thread", full)
    server.away = True
    ours.send(statements("1"))
    server.away, started = False, []
    monkeypatch.setattr(runtime, "start_thread", lambda target, name: started.append(target))
    ours.send(statements("2"))
    retry(server, started)
    assert server.sent == ["1", "2"]


def test_a_forked_child_has_one_of_its_own(ours, server, monkeypatch):
    monkeypatch.setattr(notifier.Settings, "from_odoo", classmethod(lambda cls: cls({})))
    monkeypatch.setattr(notifier, "_notifiers", {})
    parent = notifier.get_notifier()
    assert notifier.get_notifier() is parent
    parent.send(statements("1"))
    monkeypatch.setattr(notifier.os, "getpid", lambda: -1)
    child = notifier.get_notifier()
    assert child is not parent and notifier.get_notifier() is child
    child.send(statements("2"))
    assert (server.sent, server.opened, server.closed) == (["1", "2"], 2, 0)


@pytest.mark.parametrize("kind, beat, seconds", [("Worker", 4, 4), ("WorkerCron", 4, notifier.CRON_SECONDS)])
def test_a_worker_closes_what_would_be_idle_when_it_wakes(monkeypatch, kind, beat, seconds):
    asked = []
    monkeypatch.setattr(notifier, "close_idle", asked.append)
    (owner, name, replacement), = notifier.patches()
    monkeypatch.setattr(owner, name, replacement)
    worker = getattr(notifier.odoo.service.server, kind)()
    worker.multi = type("Multi", (), {"beat": beat})
    worker.check_limits()
    assert asked == [seconds]
