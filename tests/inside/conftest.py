"""What the tests inside an Odoo share: the addon is loaded the way the server loads it, and settings can be given.

Contract: a test gets its settings from a real odoo.conf, read by Odoo's own parser, and from the environment; after
the test both are what they were. Nothing of the one who started this run is read.
"""
import os

import pytest

import odoo.service.server
from odoo.tools import config


@pytest.fixture(scope="session", autouse=True)
def addon(load_registry):
    """The addon, in force: pytest-odoo loads databases, but not what is loaded server-wide."""
    odoo.service.server.load_server_wide_modules()
    from odoo.addons import bus_alt_connection
    return bus_alt_connection


@pytest.fixture(scope="session")
def direct_port(load_registry):
    """PostgreSQL's port as this run's odoo.conf has it, whatever a test sets later."""
    return config["imdispatcher_db_port"]


@pytest.fixture
def clean(monkeypatch, direct_port):
    """Neither the environment nor odoo.conf says anything to the addon."""
    for name in list(os.environ):
        if "IMDISPATCHER_" in name or name.startswith("PG"):
            monkeypatch.delenv(name)
    for name in [name for name in config.options if name.startswith("imdispatcher_")]:
        monkeypatch.setitem(config.options, name, None)


@pytest.fixture
def settings(addon, clean, monkeypatch, tmp_path):
    """Settings as read from lines of odoo.conf and an environment: `settings("db_host = here", NAME="value")`."""
    def read(conf="", **environ):
        path = tmp_path / "odoo.conf"
        path.write_text(f"[options]\n{conf}\n")
        parsed = type(config)()
        parsed._parse_config(["-c", str(path)])
        for line in conf.splitlines():
            name = line.split("=")[0].strip()
            monkeypatch.setitem(config.options, name, parsed.options.get(name))
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return addon.settings.Settings.from_odoo()
    return read


@pytest.fixture
def socket_dir(direct_port):
    """(folder, port) of PostgreSQL's own socket, as the one who started this run says."""
    return os.environ["BUS_ALT_SOCKET_DIR"], direct_port
