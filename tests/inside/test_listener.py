"""What a listener needs of Odoo's own, inside a real one."""
import contextlib
import logging
import os
import time
from types import SimpleNamespace

import pytest

import odoo.service.db
import odoo.service.server
from odoo.modules.registry import Registry
from odoo.tools import config


@pytest.fixture
def no_database(monkeypatch):
    """None is loaded, and none is named in odoo.conf; PostgreSQL is not to be asked for them."""
    def asked(*args, **kw):
        pytest.fail("PostgreSQL was asked for its databases")
    monkeypatch.setattr(Registry, "registries", type(Registry.registries)(*[1] * hasattr(Registry.registries, "count")))
    monkeypatch.setitem(config.options, "db_name", [])
    for owner in (odoo.service.db, odoo.service.server):
        monkeypatch.setattr(owner, "list_dbs", asked, raising=False)    # before 19 the server has none of its own


def test_no_database_is_loaded(addon, no_database):
    assert addon.endpoints.loaded_databases() == []


@pytest.mark.parametrize("names, databases", [
    (["one", "two"], ["one", "two"]), ("one,two", ["one", "two"]), ([], [""])])
def test_the_wakeups_of_cron_ask_nobody(addon, no_database, monkeypatch, names, databases):
    """They are needed just when PostgreSQL may be away, and the listener's thread must not wait."""
    monkeypatch.setitem(config.options, "db_name", names)
    assert addon.cron._databases() == databases


def test_a_thread_that_fails_is_not_listening(addon, settings, monkeypatch):
    """Whatever failed: the connection is gone, and health has to say so."""
    one = addon.listener.Listener(addon.cron.Subscribers(list), settings("imdispatcher_db_host = /nowhere"))
    seen = []

    def fail():
        seen.append(one.state.phase)
        if len(seen) == 2:
            one.stop()
        one.enter(addon.state.LISTENING)
        raise OSError(24, "Too many open files")
    monkeypatch.setattr(one, "_run", fail)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)       # it pauses before it begins anew
    one.run()
    assert seen == [addon.state.CONNECTING, addon.state.CONNECTING]
    assert one.state.phase == addon.state.STOPPED


def test_a_subscriber_of_another_kind_is_woken(addon):
    series = addon.dispatcher.Series("channels", ("last", "history"), False, "wake")

    class Subscriber:
        last, history = None, []
        wake = print

    class Dispatch:
        channels = {"channel": {Subscriber()}}
    subscribers = addon.dispatcher.Subscribers(Dispatch(), series)
    assert len(subscribers.lacking("demo", [(1, "channel", 0.0)], False, print)) == 1


@pytest.mark.parametrize("odd", [(5, "x"), (None,), (), "bare", 7], ids=repr)
@pytest.mark.parametrize("received, others", [(None, []), (("last", "history"), ["far"])], ids=["before", "since 16"])
def test_a_channel_without_a_database_may_be_of_any(addon, monkeypatch, odd, received, others):
    """It ends no look, and those beside it are looked at as well; "far" is not loaded here."""
    monkeypatch.setattr(addon.endpoints, "loaded_databases", lambda: ["one", "two"])
    series = addon.dispatcher.Series("channels", received, False, "wake")

    def databases(*channels):
        dispatch = SimpleNamespace(channels=dict.fromkeys(channels))
        return addon.dispatcher.Subscribers(dispatch, series).databases()
    assert databases(odd) == ["one", "two"]
    assert databases(("far", "x"), odd, ("two", "x")) == others + ["one", "two"]
    assert databases(("two", "x")) == ["two"]


@pytest.fixture
def recover(addon, settings):
    """The recovery of a listener that has these subscribers; nothing of it connects."""
    with contextlib.ExitStack() as opened:
        def recover(subscribers):
            loop = opened.enter_context(contextlib.closing(addon.loop_connection.LoopConnection(on_close=int)))
            return addon.recovery.Recovery(subscribers, settings(), loop)
        yield recover


def test_one_that_cannot_be_woken_keeps_no_other_from_it(addon, recover, caplog):
    woken = []

    def fail():
        raise RuntimeError("gone")
    with caplog.at_level(logging.ERROR, logger=addon.__name__), contextlib.closing(addon.tasks.Tasks()) as tasks:
        tasks.run(recover(None).wake([fail, lambda: woken.append(1), fail, lambda: woken.append(2)]))
    assert woken == [1, 2]
    assert [record.getMessage() for record in caplog.records] == ["A subscriber could not be woken."]


@pytest.mark.parametrize("busy, pause", [(0, 0), (1, 3), (2, 6), (4, 12), (100, 12)])
def test_rounds_of_cron_without_end_are_not_triggered(addon, recover, monkeypatch, busy, pause):
    """A loop that is busy for so many polls is left alone for three times as many, within limits."""
    recovery = recover(addon.cron.Subscribers(lambda: [""]))
    loop = recovery._loop
    rounds = []

    def polls(count):
        """How often so many of them trigger the jobs."""
        before = len(rounds)
        for _ in range(count):
            recovery.poll_jobs()
        return len(rounds) - before

    deliver = loop.deliver
    monkeypatch.setattr(loop, "deliver", lambda *given: (rounds.append(given), deliver(*given)))
    assert polls(1) == 1
    assert polls(busy) == 0             # it has not taken that one yet
    loop.poll()
    assert polls(pause + bool(busy)) == 0       # the first finds that it has
    assert polls(1) == 1
    assert set(rounds) == {("cron_trigger", "")}
    # a listener that is back does not wait for that
    assert polls(5) == 0
    loop.poll()
    assert polls(1) == 0
    recovery.trigger_jobs()
    loop.poll()
    assert polls(1) == 1


def test_a_cron_worker_is_woken_once(addon, monkeypatch):
    """Each wake-up would be a round through all its databases."""
    class Started(Exception):
        pass

    def nice(increment):        # a worker's first step
        raise Started(addon.routing._thread.subscribers.wakeups())
    monkeypatch.setattr(os, "nice", nice)
    monkeypatch.setitem(config.options, "db_name", ["one", "two"])
    worker = odoo.service.server.WorkerCron
    with pytest.raises(Started) as caught:
        worker.start(worker.__new__(worker))
    assert caught.value.args == ([""],)


@pytest.mark.parametrize("apart, waits", [
    # each may be the answer to the one before, which was with its client in less than 3 ms
    (0.003, [0, 0, 0, 0]),
    # a flood: what comes next waits for the others
    (0.001, [0, 0, 0.004]),
])
def test_what_comes_alone_is_read_at_once(addon, monkeypatch, apart, waits):
    now, read = [1000.0], []
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(addon.session, "time", clock)
    connection = SimpleNamespace(info={"host": "pg1"}, executing=False,
                                 receive=lambda: [SimpleNamespace(channel="imbus", payload="[]")])
    one = addon.session.Session(connection, None, ["private", "imbus"])
    one._arrived = lambda payloads: read.append(now[0])
    for number, wait in enumerate(waits, 1):
        due = 1000 + number * apart
        now[0] = max(now[0], due)
        one._readable()
        assert read[-1] - due == pytest.approx(wait)
