"""What a listener needs of Odoo's own, inside a real one."""
import os
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
    monkeypatch.setattr(one, "_connect", fail)
    one.run()
    assert seen == [addon.state.CONNECTING, addon.state.CONNECTING]
    assert one.state.phase == addon.state.STOPPED


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


class Link:
    """In the place of a connection on which something has always arrived."""

    def receive(self):
        return [SimpleNamespace(channel="imbus", payload="[]")]


@pytest.mark.parametrize("apart, waits", [
    # each may be the answer to the one before, which was with its client in less than 3 ms
    (0.003, [0, 0, 0, 0]),
    # a flood: what comes next waits for the others
    (0.001, [0, 0.005, 0.005]),
])
def test_what_comes_alone_is_read_at_once(addon, settings, monkeypatch, apart, waits):
    """The time from one reading until the next may be made; the payloads of a reading are with the loop before."""
    now, slept, delivered = [1000.0], [], []
    monkeypatch.setattr(addon.runtime, "monotonic", lambda: now[0])
    monkeypatch.setattr(addon.runtime, "sleep", lambda seconds: slept.append((seconds, len(delivered))))
    one = addon.listener.Listener(addon.cron.Subscribers(list), settings())
    monkeypatch.setattr(one.loop_connection, "deliver", lambda *given: delivered.append(given))
    for wait in waits:
        before = len(delivered)
        now[0] += apart
        one._receive(SimpleNamespace(link=Link()))
        assert len(delivered) == before + 1
        assert slept == ([(wait, len(delivered))] if wait else [])
        del slept[:]
    one.stop()
