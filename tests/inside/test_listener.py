"""What a listener needs of Odoo's own, inside a real one."""
import time

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
        monkeypatch.setattr(owner, "list_dbs", asked)


def test_no_database_is_loaded(addon, no_database):
    from odoo.addons.bus_alt_connection import endpoints
    assert endpoints.loaded_databases() == []


@pytest.mark.parametrize("names, databases", [
    (["one", "two"], ["one", "two"]), ("one,two", ["one", "two"]), ([], [""])])
def test_the_wakeups_of_cron_ask_nobody(addon, no_database, monkeypatch, names, databases):
    """They are needed just when PostgreSQL may be away, and the listener's thread must not wait."""
    from odoo.addons.bus_alt_connection import cron
    monkeypatch.setitem(config.options, "db_name", names)
    assert cron._databases() == databases


def test_a_thread_that_fails_is_not_listening(addon, settings, monkeypatch):
    """Whatever failed: the connection is gone, and health has to say so."""
    from odoo.addons.bus_alt_connection import cron, listener, state
    one = listener.Listener(cron.Subscribers(list), settings("imdispatcher_db_host = /nowhere"))
    seen = []

    def fail():
        seen.append(one.state.phase)
        if len(seen) == 2:
            one.stop()
        one.enter(state.LISTENING)
        raise OSError(24, "Too many open files")
    monkeypatch.setattr(one, "_run", fail)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    one.run()
    assert seen == [state.CONNECTING, state.CONNECTING]
    assert one.state.phase == state.STOPPED


def test_a_subscriber_of_another_kind_is_woken(addon):
    from odoo.addons.bus_alt_connection import dispatcher
    series = dispatcher.Series("channels", ("last", "history"), False, "wake")

    class Subscriber:
        last, history = None, []
        wake = print

    class Dispatch:
        channels = {"channel": {Subscriber()}}
    subscribers = dispatcher.Subscribers(Dispatch(), series)
    assert len(subscribers.lacking("demo", [(1, "channel", 0.0)], False, print)) == 1
