"""Settings inside a real Odoo: each name, each precedence, each wrong value.

Contract: environment before odoo.conf before Odoo's own `db_*`; the documented name before the published addon's;
empty is unset; a wrong value costs one line that names setting, source, value and remedy, and nothing else; a password
is in no text.
"""
import logging

import psycopg2
import pytest

import odoo.sql_db

SECRET = "hunter2hunter2"

# setting, a right value as text, what it becomes
CONNECTION = [
    ("db_host", "direct.example", ["direct.example"]),
    ("db_port", "5433", [5433]),
    ("db_user", "listener", "listener"),
    ("db_password", SECRET, SECRET),
    ("db_password_file", "FILE", "FILE"),
    ("db_name", "somewhere", "somewhere"),
    ("db_sslmode", "verify-full", "verify-full"),
    ("db_sslrootcert", "FILE", "FILE"),
]
OTHERS = [
    ("heartbeat_seconds", "7.5", 7.5),
    ("heartbeat_timeout_seconds", "0.5", 0.5),
    ("tcp_timeout_seconds", "2", 2.0),
    ("connect_timeout_seconds", "30", 30.0),
    ("retry_max_seconds", "0.05", 0.05),
    ("poll_seconds", "3600", 3600.0),
    ("probe_timeout_seconds", "1", 1.0),
    ("wakeups_per_second", "1000000", 1000000),
    ("metrics_port", "9187", 9187),
    ("metrics_host", "0.0.0.0", "0.0.0.0"),
]
RIGHT = CONNECTION + OTHERS
NAMES = [row[0] for row in RIGHT]

WRONG = [
    ("db_port", "abc", "1 to 65535"),
    ("db_port", "0", "1 to 65535"),
    ("db_port", "-1", "1 to 65535"),
    ("db_port", "70000", "1 to 65535"),
    ("db_port", "5432.0", "1 to 65535"),
    ("db_port", "5432,", "1 to 65535"),
    ("db_port", "\u00b2", "1 to 65535"),     # a digit, but no number: str.isdigit says yes, int says no
    ("db_host", "direct.example:5432", "without a port"),
    ("db_host", "direct.example,", "a host name"),
    ("db_host", "two words", "without spaces"),
    ("db_host", "postgresql://direct.example/postgres", "host"),
    ("db_host", "x=y", "without spaces"),
    ("db_sslmode", "maybe", "verify-full"),
    ("db_sslmode", "Require", "require"),
    ("db_sslrootcert", "/nowhere/ca.pem", "a file that Odoo may read"),
    ("db_sslrootcert", "/", "a file that Odoo may read"),
    ("db_password_file", "/nowhere/password", "a file that Odoo may read"),
    ("heartbeat_seconds", "often", "number of seconds"),
    ("heartbeat_seconds", "0", "0.05 to 3600"),
    ("heartbeat_timeout_seconds", "-5", "0.05 to 3600"),
    ("tcp_timeout_seconds", "nan", "0.05 to 3600"),
    ("connect_timeout_seconds", "inf", "0.05 to 3600"),
    ("retry_max_seconds", "3601", "0.05 to 3600"),
    ("poll_seconds", "1,5", "number of seconds"),
    ("probe_timeout_seconds", "5s", "number of seconds"),
    ("wakeups_per_second", "0", "1 to 1000000"),
    ("wakeups_per_second", "\u00b2", "1 to 1000000"),
    ("wakeups_per_second", "1.5", "1 to 1000000"),
    ("wakeups_per_second", "1000001", "1 to 1000000"),
    ("metrics_port", "70000", "1 to 65535"),
    ("metrics_port", "9187,9188", "1 to 65535"),
    ("metrics_host", "here:9187", "without a port"),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a file"
    path.write_text(SECRET + "\n")
    return str(path)


def env(name, prefix=""):
    return prefix + "IMDISPATCHER_" + name.upper()


@pytest.mark.parametrize("name, text, value", RIGHT, ids=NAMES)
@pytest.mark.parametrize("way", ["environment", "published environment", "odoo.conf"])
def test_each_name_each_way(settings, file, name, text, value, way):
    text, value = (file if part == "FILE" else part for part in (text, value))
    if way == "odoo.conf":
        read = settings("imdispatcher_%s = %s" % (name, text))
        assert "imdispatcher_%s in " % name in read.sources[name]
    else:
        variable = env(name, "ODOO_" if way.startswith("published") else "")
        read = settings(**{variable: text})
        assert read.sources[name] == "environment variable " + variable
    assert read.values[name] == value == getattr(read, name)
    assert not read.problems


@pytest.mark.parametrize("name", NAMES)
def test_precedence(settings, file, name):
    """Each of the three has another right value; the one that stands first is taken away in turn."""
    texts = {
        "db_port": ("1", "2", "3"), "metrics_port": ("1", "2", "3"), "wakeups_per_second": ("1", "2", "3"),
        "db_sslmode": ("require", "allow", "prefer"),
        "db_sslrootcert": (file, "/dev/null", "/proc/self/status"),
        "db_password_file": (file, "/dev/null", "/proc/self/status"),
    }.get(name, ("1", "2", "3"))
    default = settings().values.get(name)
    by_itself = [settings(**{env(name): text}).values[name] for text in texts]
    documented, published, in_file = by_itself
    conf = "imdispatcher_%s = %s" % (name, texts[2])
    assert settings(conf, **{env(name): texts[0], env(name, "ODOO_"): texts[1]}).values[name] == documented
    # empty is unset, and so are blanks
    assert settings(conf, **{env(name): "", env(name, "ODOO_"): texts[1]}).values[name] == published
    assert settings(conf, **{env(name): "", env(name, "ODOO_"): "  "}).values[name] == in_file
    unset = settings("imdispatcher_%s =" % name, **{env(name): "", env(name, "ODOO_"): ""})
    assert unset.values.get(name) == default
    assert not unset.problems


def test_blanks_around_a_value_do_not_count(settings):
    assert settings(IMDISPATCHER_DB_PORT=" 5433 ").db_port == [5433]


@pytest.mark.parametrize("name, text, right", WRONG)
@pytest.mark.parametrize("way", ["environment", "odoo.conf"])
def test_each_wrong_value(settings, name, text, right, way):
    default = settings()
    conf = "imdispatcher_%s = %s" % (name, text)
    read = settings(conf) if way == "odoo.conf" else settings(**{env(name): text})
    problem, = read.problems
    assert problem.startswith(read.sources[name])
    for part in (env(name) if way == "environment" else "imdispatcher_" + name, repr(text), right):
        assert part in problem
    assert "\n" not in problem
    # as if it were not set
    assert read.values == default.values
    assert read.direct() == default.direct()


def test_a_wrong_value_does_not_uncover_another(settings):
    """Whoever sets a variable means it: what stands in the file is not used in its place."""
    read = settings("imdispatcher_db_port = 5433", IMDISPATCHER_DB_PORT="abc")
    assert "db_port" not in read.values
    assert len(read.problems) == 1


@pytest.mark.parametrize("name", ["db_user", "db_name", "db_password"])
def test_a_zero_byte(settings, name):
    """Impossible in an environment, possible in a file; libpq would end the value there."""
    problem, = settings("imdispatcher_%s = head\0tail" % name).problems
    assert "zero byte" in problem
    assert ("head" in problem) == (name != "db_password")


@pytest.mark.parametrize("hosts, ports, right", [
    ("", "1,2", False), ("a", "1,2", False), ("a,b", "1,2,3", False), ("a,b", "1,2", True), ("a,b", "1", True),
])
def test_as_many_ports_as_hosts(settings, hosts, ports, right):
    read = settings(IMDISPATCHER_DB_HOST=hosts, IMDISPATCHER_DB_PORT=ports)
    assert bool(read.problems) != right
    assert ("db_port" in read.values) == right
    if not right:
        assert "IMDISPATCHER_DB_PORT" in read.problems[0] and "as many as hosts" in read.problems[0]


def addresses(read):
    return [(info["host"], info["port"]) for info in read.direct()]


def test_what_is_unset_is_odoos_own(settings):
    read = settings("db_host = pooler\ndb_port = 6432\ndb_user = odoo\ndb_password = %s\ndb_sslmode = require" % SECRET)
    assert not read.configured and not read.problems
    direct, = read.direct()
    pooled = odoo.sql_db.connection_info_for("postgres")[1]
    assert direct == read.pooled() == {**{k: v for k, v in pooled.items() if k != "database"}, "dbname": "postgres"}
    assert (direct["host"], direct["port"], direct["user"]) == ("pooler", 6432, "odoo")
    assert (direct["password"], direct["sslmode"]) == (SECRET, "require")


def test_port_alone_and_host_alone_are_enough(settings):
    own = "db_host = pooler\ndb_port = 6432"
    read = settings(own, IMDISPATCHER_DB_PORT="5432")
    assert read.configured and addresses(read) == [("pooler", 5432)]
    read = settings(own, IMDISPATCHER_DB_PORT="", IMDISPATCHER_DB_HOST="direct")
    assert read.configured and addresses(read) == [("direct", 6432)]


def test_each_part_replaces_odoos_own(settings, file):
    read = settings(
        "db_host = pooler\ndb_user = odoo\ndb_password = own\ndb_sslmode = disable", IMDISPATCHER_DB_HOST="direct",
        IMDISPATCHER_DB_USER="listener", IMDISPATCHER_DB_PASSWORD=SECRET, IMDISPATCHER_DB_NAME="elsewhere",
        IMDISPATCHER_DB_SSLMODE="verify-ca", IMDISPATCHER_DB_SSLROOTCERT=file)
    info, = read.direct()
    assert {key: info[key] for key in ("host", "user", "password", "dbname", "sslmode", "sslrootcert")} == {
        "host": "direct", "user": "listener", "password": SECRET, "dbname": "elsewhere", "sslmode": "verify-ca",
        "sslrootcert": file}
    # the pooled path stays Odoo's own
    assert {key: read.pooled()[key] for key in ("host", "user", "password", "dbname", "sslmode")} == {
        "host": "pooler", "user": "odoo", "password": "own", "dbname": "postgres", "sslmode": "disable"}
    assert "sslrootcert" not in read.pooled()
    assert read.pooled("demo")["dbname"] == "demo"


@pytest.mark.parametrize("text, hosts", [
    ("::1", ["::1"]), ("[::1]", ["::1"]), ("fe80::1%eth0", ["fe80::1%eth0"]), ("[::1],10.0.0.1", ["::1", "10.0.0.1"]),
    ("/run/postgresql", ["/run/postgresql"]), ("@abstract", ["@abstract"]),
    ("a, b ,c", ["a", "b", "c"]), ("a_b.example.", ["a_b.example."]),
])
def test_kinds_of_hosts(settings, text, hosts):
    read = settings("db_port = 6432", IMDISPATCHER_DB_HOST=text)
    assert not read.problems
    assert [info["host"] for info in read.direct()] == hosts
    assert {info["port"] for info in read.direct()} == {6432}


def test_a_port_for_each_host(settings):
    read = settings(IMDISPATCHER_DB_HOST="a,[::1]", IMDISPATCHER_DB_PORT="5432, 5433")
    assert addresses(read) == [("a", 5432), ("::1", 5433)]


def test_an_ipv6_address_is_shown_in_brackets(settings, addon):
    info, = settings(IMDISPATCHER_DB_HOST="::1", IMDISPATCHER_DB_PORT="5433").direct()
    assert addon.link.place(info).startswith("[::1]:5433/postgres")


def test_a_password_file_is_read_each_time(settings, tmp_path, addon):
    secret = tmp_path / "secret"
    secret.write_text("first\n")
    read = settings(IMDISPATCHER_DB_PASSWORD_FILE=str(secret))
    assert read.direct()[0]["password"] == "first"
    secret.write_text("second\r\n")
    assert read.direct()[0]["password"] == "second"
    secret.unlink()
    with pytest.raises(addon.settings.Invalid, match=str(secret)):
        read.direct()


def test_a_password_goes_before_its_file(settings, file):
    read = settings(IMDISPATCHER_DB_PASSWORD="given", IMDISPATCHER_DB_PASSWORD_FILE=file)
    assert read.direct()[0]["password"] == "given"


def test_a_password_is_in_no_text(settings, addon, file, caplog):
    """Right or wrong, from wherever it comes: not in a problem, a log line, a repr, an error of a failed login."""
    for read in (
        settings("imdispatcher_db_password = %s\0" % SECRET),
        settings(IMDISPATCHER_DB_PASSWORD=SECRET, IMDISPATCHER_DB_PORT="abc"),
        settings(IMDISPATCHER_DB_PASSWORD="", IMDISPATCHER_DB_PORT="", IMDISPATCHER_DB_PASSWORD_FILE=file),
    ):
        texts = [repr(read), str(read), repr(read.problems), repr(read.sources)]
        texts += [addon.link.place(info) for info in read.direct()]
        with pytest.raises(AttributeError) as caught:
            read.db_nothing  # noqa: B018
        assert SECRET not in "\n".join(texts + [str(caught.value)])
    # the real login of a listener that has the wrong password, and what it makes of the answer
    with caplog.at_level(logging.DEBUG, logger=addon.trouble.__name__):
        with pytest.raises(addon.link.Lost) as caught:
            addon.link.Link(dict(own_address(), password=SECRET), 5, 5)
        trouble = addon.trouble.Trouble("bus")
        trouble.lost(caught.value, had_one=False)
    assert "authentication failed" in str(caught.value) and caplog.records
    assert SECRET not in "\n".join([str(caught.value), repr(caught.value), trouble.current, caplog.text])


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
    link = addon.link.Link(read.direct()[0], 5, 5)
    try:
        assert link.query("SELECT inet_server_addr(), current_user") == [(None, own["user"])]
    finally:
        link.close()


def test_libpq_takes_what_is_made(settings, file):
    """Every keyword is one that libpq knows."""
    values = {env(name): file if text == "FILE" else text for name, text, _ in CONNECTION}
    for info in settings(**values).direct():
        assert psycopg2.extensions.parse_dsn(psycopg2.extensions.make_dsn(**info))
