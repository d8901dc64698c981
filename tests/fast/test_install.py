"""The patches: those of the main job together or not at all, each other part by itself."""
import logging
import sys
import types

import pytest

from bus_alt_connection import dispatcher, install, routing
from bus_alt_connection.settings import Settings
from stack.addon import NAME

PARTS = ["cron", "observe.health", "mends.log_db", "mends.history", "mends.websockets", "notifier",
         "observe.metrics"]


@pytest.fixture
def odoo(monkeypatch):
    """What is patched: its attributes are "upstream's" until then. `part(name, patches)` replaces that of a part."""
    odoo = types.SimpleNamespace(main="upstream's")
    found = Settings({"IMDISPATCHER_METRICS_PORT": "9187", "IMDISPATCHER_DB_HOST": "direct"})
    monkeypatch.setattr(install.Settings, "from_odoo", classmethod(lambda cls: found))
    monkeypatch.setattr(dispatcher, "find", lambda: (None, type("Dispatcher", (), {}), "loop"))
    monkeypatch.setattr(dispatcher, "patches", lambda: [(odoo, "main", "ours")])
    monkeypatch.setattr(routing, "patches", lambda keep_notify: [(odoo, "second", "ours")])
    monkeypatch.setattr(install, "server_wide_modules", lambda: ["base", "web"])

    def part(name, patches):
        stand_in = types.ModuleType(name)
        stand_in.patches = patches
        monkeypatch.setitem(sys.modules, f"{NAME}.{name}", stand_in)
    odoo.part = part
    for name in PARTS:
        setattr(odoo, name, "upstream's")
        part(name, lambda name=name: [(odoo, name, "ours")])
    return odoo


def test_all_of_it(odoo, caplog):
    install.install()
    assert [getattr(odoo, name) for name in ["main", "second", *PARTS]] == ["ours"] * (len(PARTS) + 2)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("error", [AttributeError("this"), ImportError("this"), ValueError("this\nand more")])
def test_a_part_that_does_not_fit_is_one_warning(odoo, caplog, name, error):
    def fail():
        raise error
    odoo.part(name, fail)
    install.install()
    assert {each for each in PARTS if getattr(odoo, each) != "ours"} == {name}
    line, = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"its part {name} does not fit this Odoo 0.0 (this)" in line


@pytest.mark.parametrize("owner", [dispatcher, routing])
def test_a_main_job_that_does_not_fit_changes_nothing(odoo, monkeypatch, owner):
    def fail(*args):
        raise AttributeError("this")
    monkeypatch.setattr(owner, "patches", fail)
    with pytest.raises(AttributeError):
        install.install()
    assert odoo.main == "upstream's" and {getattr(odoo, name) for name in PARTS} == {"upstream's"}


@pytest.mark.parametrize("upstream, evented, modules, environ, parts", [
    ({}, False, ["web"], {}, {"mends.history", "mends.websockets", "notifier"}),
    ({"poll": None}, False, ["web"], {}, {"mends.long_polls", "notifier"}),
    ({}, False, ["web"], {"IMDISPATCHER_KEEP_NOTIFY": "off"}, {"mends.history", "mends.websockets"}),
    ({}, False, ["queue_job"], {}, {"mends.history", "mends.websockets", "notifier", "queue_job"}),
    ({}, True, ["queue_job"], {}, {"mends.history", "mends.websockets", "notifier"}),
    ({}, False, ["web"], {"IMDISPATCHER_METRICS_PORT": "1"},
     {"mends.history", "mends.websockets", "notifier", "observe.metrics"}),
])
def test_what_is_not_needed_is_left_out(odoo, monkeypatch, upstream, evented, modules, environ, parts):
    monkeypatch.setattr(dispatcher, "find", lambda: (None, type("Dispatcher", (), upstream), "loop"))
    monkeypatch.setattr(install.odoo, "evented", evented)
    monkeypatch.setattr(install, "server_wide_modules", lambda: modules)
    assert set(install._extras(Settings(environ))) == parts | {"cron", "observe.health", "mends.log_db"}
