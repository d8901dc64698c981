"""Settings inside a real Odoo: what its parser makes of odoo.conf, and which endpoints come of them.

Contract: each setting can stand in a real odoo.conf of every series, whatever type Odoo gives to it; what is set
nowhere is Odoo's own; with a wrong address the endpoint is Odoo's own, with a wrong TLS or login setting there is
none; files are read at each connect; a password is in no text. What needs no Odoo is in fast/test_settings.py.
"""
import contextlib
import logging

import psycopg2
import pytest
from settings_values import CONNECTION, FATAL, FILE, NAMES, RIGHT, SECRET, WRONG

import odoo.sql_db
from odoo.tools import config


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a file"
    path.write_text(SECRET + "\n")
    return str(path)


@pytest.fixture
def endpoints(addon):
    return addon.endpoints


def env(name):
    return "IMDISPATCHER_" + name.upper()


def fails(addon, read, cause):
    """The error with which no endpoint is given."""
    with pytest.raises(addon.errors.ConnectionLost) as caught:
        addon.endpoints.direct(read)
    assert caught.value.cause.name == cause
    return caught.value


# -- odoo.conf ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, text, value", RIGHT, ids=NAMES)
def test_each_name_in_odoo_conf(settings, file, name, text, value):
    text, value = (file if part == FILE else part for part in (text, value))
    read = settings(f"imdispatcher_{name} = {text}")
    # before 19 the option is empty
    assert read.sources[name] == "imdispatcher_{} in {}".format(name, config["config"] or config.rcfile)
    assert read.values[name] == value == getattr(read, name)
    assert not read.problems


@pytest.mark.parametrize("name, text, right", WRONG)
def test_each_wrong_value_in_odoo_conf(settings, addon, name, text, right):
    default = settings()
    read = settings(f"imdispatcher_{name} = {text}")
    problem, = read.problems
    for part in (f"imdispatcher_{name} in ", repr(text), right):
        assert part in problem
    assert read.values == default.values
    if name in FATAL:
        assert problem.rstrip(".") in fails(addon, read, "setting").reason
    else:
        assert addon.endpoints.direct(read) == addon.endpoints.direct(default)


@pytest.mark.parametrize("name", NAMES)
def test_empty_in_odoo_conf_is_unset(settings, name):
    assert settings(f"imdispatcher_{name} =").values == settings().values


@pytest.mark.parametrize("name", ["db_user", "db_name", "db_password"])
def test_a_zero_byte(settings, addon, name):
    """Impossible in an environment, possible in a file; libpq would end the value there."""
    read = settings(f"imdispatcher_{name} = head\0tail")
    problem, = read.problems
    assert "zero byte" in problem
    assert ("head" in problem) == (name != "db_password")
    fails(addon, read, "setting")


def test_the_environment_takes_precedence_over_odoo_conf(settings):
    assert settings("imdispatcher_db_port = 5433", IMDISPATCHER_DB_PORT="5434").db_port == [5434]
    assert settings("imdispatcher_db_port = 5433", IMDISPATCHER_DB_PORT="").db_port == [5433]


# -- endpoints ---------------------------------------------------------------------------------------------------------

def address(info):
    return info["host"], str(info["port"])


def test_what_is_unset_is_odoos_own(settings, endpoints):
    read = settings(f"db_host = pooler\ndb_port = 6432\ndb_user = odoo\ndb_password = {SECRET}\ndb_sslmode = require")
    assert not read.configured and not read.problems
    direct = endpoints.direct(read)
    pooled = odoo.sql_db.connection_info_for("postgres")[1]
    own = {**{name: value for name, value in pooled.items() if name != "database"}, "dbname": "postgres"}
    assert endpoints.pooled() == own
    assert direct == {name: value for name, value in own.items() if value is not None}
    assert (*address(direct), direct["user"]) == ("pooler", "6432", "odoo")
    assert (direct["password"], direct["sslmode"]) == (SECRET, "require")


def test_port_alone_and_host_alone_are_enough(settings, endpoints):
    own = "db_host = pooler\ndb_port = 6432"
    read = settings(own, IMDISPATCHER_DB_PORT="5432")
    assert read.configured and address(endpoints.direct(read)) == ("pooler", "5432")
    read = settings(own, IMDISPATCHER_DB_PORT="", IMDISPATCHER_DB_HOST="direct")
    assert read.configured and address(endpoints.direct(read)) == ("direct", "6432")


def test_each_part_replaces_odoos_own(settings, endpoints, file):
    read = settings(
        "db_host = pooler\ndb_user = odoo\ndb_password = own\ndb_sslmode = disable", IMDISPATCHER_DB_HOST="direct",
        IMDISPATCHER_DB_USER="listener", IMDISPATCHER_DB_PASSWORD=SECRET, IMDISPATCHER_DB_NAME="elsewhere",
        IMDISPATCHER_DB_SSLMODE="verify-ca", IMDISPATCHER_DB_SSLROOTCERT=file)
    info = endpoints.direct(read)
    assert {key: info[key] for key in ("host", "user", "password", "dbname", "sslmode", "sslrootcert")} == {
        "host": "direct", "user": "listener", "password": SECRET, "dbname": "elsewhere", "sslmode": "verify-ca",
        "sslrootcert": file}
    # the pooled path stays Odoo's own
    pooled = endpoints.pooled()
    assert {key: pooled[key] for key in ("host", "user", "password", "dbname", "sslmode")} == {
        "host": "pooler", "user": "odoo", "password": "own", "dbname": "postgres", "sslmode": "disable"}
    assert "sslrootcert" not in pooled
    assert endpoints.pooled("demo")["dbname"] == "demo"


@pytest.mark.parametrize("own, hosts, ports, found", [
    ("db_port = 6432", "127.0.0.1,[::1]", "", [("127.0.0.1", "6432"), ("::1", "6432")]),
    ("", "127.0.0.1,[::1]", "5432, 5433", [("127.0.0.1", "5432"), ("::1", "5433")]),
    ("", "/run/postgresql, 127.0.0.1", "5433", [("/run/postgresql", "5433"), ("127.0.0.1", "5433")]),
])
def test_one_port_for_all_hosts_or_one_each(settings, endpoints, own, hosts, ports, found):
    read = settings(own, IMDISPATCHER_DB_HOST=hosts, IMDISPATCHER_DB_PORT=ports)
    assert [address(info) for info in endpoints.resolve(endpoints.direct(read))] == found


def test_an_ipv6_address_is_shown_in_brackets(settings, endpoints):
    info = endpoints.direct(settings(IMDISPATCHER_DB_HOST="::1", IMDISPATCHER_DB_PORT="5433"))
    assert endpoints.shown(info).startswith("[::1]:5433/postgres")


def test_a_password_file_is_read_each_time(settings, endpoints, addon, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("first\n")
    read = settings(IMDISPATCHER_DB_PASSWORD_FILE=str(secret))
    assert endpoints.direct(read)["password"] == "first"
    secret.write_text("second\r\n")
    assert endpoints.direct(read)["password"] == "second"
    secret.unlink()
    assert str(secret) in fails(addon, read, "password file").reason
    secret.write_bytes(b"\xff\xfe")
    assert str(secret) in fails(addon, read, "password file").reason
    secret.write_text("third\n")
    assert endpoints.direct(read)["password"] == "third"


def test_a_root_certificate_is_looked_at_each_time(settings, endpoints, addon, tmp_path):
    certificate = tmp_path / "ca.crt"
    read = settings(IMDISPATCHER_DB_SSLROOTCERT=str(certificate))
    assert not read.problems
    assert "no file that Odoo may read" in fails(addon, read, "setting").reason
    certificate.write_text("mounted later\n")
    assert endpoints.direct(read)["sslrootcert"] == str(certificate)


@pytest.mark.parametrize("own", ["disable", "prefer", "require"])
def test_a_root_certificate_alone_is_checked_in_full(settings, endpoints, file, own):
    """Odoo's own mode is for its own connections; with "prefer" libpq goes on without TLS if the check fails."""
    for certificate in (file, "system"):
        info = endpoints.direct(settings(f"db_sslmode = {own}", IMDISPATCHER_DB_SSLROOTCERT=certificate))
        assert (info["sslrootcert"], info["sslmode"]) == (certificate, "verify-full")


def test_a_password_takes_precedence_over_its_file(settings, endpoints, file):
    read = settings(IMDISPATCHER_DB_PASSWORD="given", IMDISPATCHER_DB_PASSWORD_FILE=file)
    assert endpoints.direct(read)["password"] == "given"


# -- logins ------------------------------------------------------------------------------------------------------------

def test_a_password_is_in_no_text(settings, addon, file, caplog):
    """Right or wrong, from wherever it comes: not in a problem, a log line, a repr, an error of a failed login."""
    texts = []
    for read in (
        settings(f"imdispatcher_db_password = {SECRET}\0"),
        settings(IMDISPATCHER_DB_PASSWORD=SECRET, IMDISPATCHER_DB_PORT="abc"),
        settings(IMDISPATCHER_DB_PASSWORD="", IMDISPATCHER_DB_PORT="", IMDISPATCHER_DB_PASSWORD_FILE=file),
    ):
        texts += [repr(read), str(read), repr(read.problems), repr(read.sources), repr(read.fatal)]
        if read.fatal:
            texts.append(repr(fails(addon, read, "setting")))
        else:
            texts.append(addon.endpoints.shown(addon.endpoints.direct(read)))
        with pytest.raises(AttributeError) as caught:
            read.db_nothing  # noqa: B018
        texts.append(str(caught.value))
    # the real login of a listener that has the wrong password, and what the log makes of the answer
    with caplog.at_level(logging.DEBUG, logger=addon.__name__):
        with pytest.raises(addon.errors.ConnectionLost) as caught:
            addon.link.Link.open(dict(own_address(), password=SECRET), 5)
        before = addon.state.initial()
        after = addon.state.successor(before, addon.state.CONNECTING, problem=caught.value)
        addon.state.StateLog("bus", 5).change(before, after)
    assert "authentication failed" in str(caught.value) and "cannot connect" in caplog.text
    texts += [str(caught.value), repr(caught.value), repr(after), caplog.text]
    assert SECRET not in "\n".join(texts)


def own_address():
    """What Odoo itself logs in with."""
    info = dict(odoo.sql_db.connection_info_for("postgres")[1])
    info["dbname"] = info.pop("database")
    return info


def test_a_socket_folder_and_a_password_file_log_in(settings, addon, socket_dir, tmp_path):
    own = own_address()
    secret = tmp_path / "secret"
    secret.write_text(own["password"] + "\n")
    folder, port = socket_dir
    read = settings("db_password = wrong", IMDISPATCHER_DB_HOST=folder, IMDISPATCHER_DB_PORT=port,
                    IMDISPATCHER_DB_PASSWORD_FILE=str(secret))
    with contextlib.closing(addon.link.Link.open(addon.endpoints.direct(read), 5)) as link:
        assert link.query("SELECT inet_server_addr(), current_user") == [(None, own["user"])]


def test_libpq_takes_what_is_made(settings, endpoints, file):
    """Every keyword is one that libpq knows."""
    values = {env(name): file if text == FILE else text for name, text, _ in CONNECTION}
    assert psycopg2.extensions.parse_dsn(psycopg2.extensions.make_dsn(**endpoints.direct(settings(**values))))
