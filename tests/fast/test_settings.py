"""What the user asked for: each name each way, what takes precedence, each wrong value.

Contract: environment before odoo.conf, the documented name before the published addon's; empty is unset; a wrong value
costs one line that names setting, source, value and what would be right; a password is in no text. What Odoo's parser
makes of odoo.conf, and what comes of it, is in inside/test_settings.py.
"""
import pytest

from bus_alt_connection import settings
from bus_alt_connection.settings import Settings
from tests.inside.settings_values import CONNECTION, FATAL, NAMES, RIGHT, SECRET, WRONG


def env(name, prefix=""):
    return prefix + "IMDISPATCHER_" + name.upper()


def option(name):
    return "imdispatcher_" + name


DEFAULTS = Settings({}).values
SWITCHES = ("keep_notify", "queue_job")


def test_every_setting_is_here():
    assert sorted(NAMES) == sorted([*settings.CONNECTION, *settings.OTHERS])
    assert {row[0] for row in WRONG} >= set(NAMES) - {"db_user", "db_password", "db_password_file", "db_name",
                                                      "db_sslrootcert"}     # any text will do


def test_what_is_not_set():
    read = Settings({})
    assert (read.problems, read.fatal, read.sources) == ([], [], {})
    assert not read.configured
    assert {name for name, _, _ in CONNECTION if name in read.values} == set()
    assert (read.heartbeat_seconds, read.connect_timeout_seconds, read.poll_seconds) == (5.0, 5.0, 5.0)
    assert (read.keep_notify, read.queue_job) == (True, True)
    assert (read.metrics_port, read.metrics_host) == (None, "127.0.0.1")


# -- each name, each way -----------------------------------------------------------------------------------------------

WAYS = {
    "environment": lambda name, text: Settings({env(name): text}),
    "published environment": lambda name, text: Settings({env(name, "ODOO_"): text}),
    "odoo.conf": lambda name, text: Settings({}, {option(name): text}, "/etc/odoo.conf"),
}
SOURCES = {
    "environment": lambda name: "environment variable " + env(name),
    "published environment": lambda name: "environment variable " + env(name, "ODOO_"),
    "odoo.conf": lambda name: option(name) + " in /etc/odoo.conf",
}


@pytest.mark.parametrize("name, text, value", RIGHT, ids=NAMES)
@pytest.mark.parametrize("way", WAYS)
def test_each_name_each_way(name, text, value, way):
    read = WAYS[way](name, text)
    assert read.values[name] == value == getattr(read, name) != DEFAULTS.get(name)
    assert read.sources == {name: SOURCES[way](name)}
    assert not read.problems
    # and nothing else
    assert {**read.values, name: None} == {**DEFAULTS, name: None}


@pytest.mark.parametrize("name", NAMES)
def test_precedence(name):
    """Each of the three has another right value; the one that stands first is taken away in turn."""
    texts = {"db_sslmode": ("require", "allow", "prefer"), **dict.fromkeys(SWITCHES, ("false", "true", "false"))}.get(
        name, ("1", "2", "3"))
    documented, published, in_file = (Settings({env(name): text}).values[name] for text in texts)
    conf = {option(name): texts[2]}

    def read(first, second):
        return Settings({env(name): first, env(name, "ODOO_"): second}, conf)
    assert read(texts[0], texts[1]).values[name] == documented
    # empty is unset, and so are blanks
    assert read("", texts[1]).values[name] == published
    assert read("", "  ").values[name] == in_file
    unset = Settings({env(name): "", env(name, "ODOO_"): ""}, {option(name): ""})
    assert unset.values == DEFAULTS and not unset.problems


@pytest.mark.parametrize("name", NAMES)
def test_what_odoos_older_parsers_make_of_a_value(name):
    """They turn some texts into numbers, booleans and None; where that is possible the value is the same."""
    assert Settings({}, {option(name): None}).values == DEFAULTS
    if name in SWITCHES:
        assert Settings({}, {option(name): False}).values[name] is False
        assert Settings({}, {option(name): True}).values[name] is True
    else:
        assert Settings({}, {option(name): False}).values == DEFAULTS
    if name.endswith(("_port", "_seconds")):
        assert Settings({}, {option(name): 1}).values == Settings({env(name): "1"}).values


def test_blanks_around_a_value_do_not_count():
    assert Settings({"IMDISPATCHER_DB_PORT": " 5433 "}).db_port == [5433]
    assert Settings({}, {"imdispatcher_db_name": " demo\t"}).db_name == "demo"


@pytest.mark.parametrize("text, value", [
    ("1", True), ("true", True), ("True", True), ("yes", True), ("on", True),
    ("0", False), ("false", False), ("False", False), ("no", False), ("OFF", False),
])
def test_words_for_a_switch(text, value):
    assert Settings({"IMDISPATCHER_KEEP_NOTIFY": text}).keep_notify is value


# -- addresses ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, hosts", [
    ("::1", ["::1"]), ("[::1]", ["::1"]), ("fe80::1%eth0", ["fe80::1%eth0"]), ("[::1],10.0.0.1", ["::1", "10.0.0.1"]),
    ("/run/postgresql", ["/run/postgresql"]), ("@abstract", ["@abstract"]),
    ("a, b ,c", ["a", "b", "c"]), ("a_b.example.", ["a_b.example."]),
])
def test_kinds_of_hosts(text, hosts):
    read = Settings({"IMDISPATCHER_DB_HOST": text})
    assert read.db_host == hosts and not read.problems


@pytest.mark.parametrize("hosts, ports, right", [
    ("", "1,2", False), ("a", "1,2", False), ("a,b", "1,2,3", False), ("a,b", "1,2", True), ("a,b", "1", True),
])
def test_one_port_or_as_many_as_hosts(hosts, ports, right):
    read = Settings({"IMDISPATCHER_DB_HOST": hosts, "IMDISPATCHER_DB_PORT": ports})
    assert ("db_port" in read.values) == right
    if right:
        assert not read.problems
    else:
        problem, = read.problems
        assert "IMDISPATCHER_DB_PORT" in problem and "as many as hosts" in problem and repr(ports) in problem
        assert not read.fatal


@pytest.mark.parametrize("name, configured", [("db_host", True), ("db_port", True), ("db_user", False),
                                              ("db_password", False), ("poll_seconds", False)])
def test_an_address_is_what_makes_it_configured(name, configured):
    assert Settings({env(name): "1"}).configured == configured


@pytest.mark.parametrize("mode, right", [
    (None, True), ("require", True), ("verify-ca", True), ("verify-full", True), ("disable", False), ("allow", False),
    ("prefer", False),
])
def test_a_root_certificate_is_for_a_mode_that_checks_it(mode, right):
    """With a weaker mode libpq would connect without TLS if the check fails."""
    read = Settings({"IMDISPATCHER_DB_SSLROOTCERT": "/ca.crt", "IMDISPATCHER_DB_SSLMODE": mode or ""})
    if right:
        assert not read.problems and read.values.get("db_sslmode") == mode
    else:
        problem, = read.problems
        assert read.fatal == [problem] and "verify-full or verify-ca" in problem and "db_sslmode" not in read.values


# -- wrong values ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, text, right", WRONG)
@pytest.mark.parametrize("way", WAYS)
def test_each_wrong_value(name, text, right, way):
    read = WAYS[way](name, text)
    problem, = read.problems
    assert problem.startswith(SOURCES[way](name) + f" is {text!r}, ")
    assert right in problem and "\n" not in problem
    # as if it were not set
    assert read.values == DEFAULTS
    # an address or a timing is ignored; without a right TLS or login setting nothing is connected to
    assert read.fatal == ([problem] if name in FATAL else [])
    assert ("so there is no direct connection" if name in FATAL else "which is ignored") in problem


@pytest.mark.parametrize("name", ["db_user", "db_password", "db_password_file", "db_name"])
def test_a_zero_byte(name):
    """Impossible in an environment, possible in a file; libpq would end the value there."""
    read = Settings({}, {option(name): "head\0tail"})
    problem, = read.problems
    assert "zero byte" in problem and ("head" in problem) == (name != "db_password")
    assert read.fatal == [problem]


def test_a_wrong_value_does_not_uncover_another():
    """Whoever sets a variable means it: what stands in the file is not used in its place."""
    read = Settings({"IMDISPATCHER_DB_PORT": "abc"}, {"imdispatcher_db_port": "5433"})
    assert "db_port" not in read.values
    assert len(read.problems) == 1


def test_each_wrong_value_is_a_line():
    read = Settings({env("db_port"): "abc", env("db_sslmode"): "maybe", env("poll_seconds"): "x"})
    assert len(read.problems) == 3
    assert len(read.fatal) == 1 and "SSLMODE" in read.fatal[0]


def test_a_setting_that_there_is_not():
    with pytest.raises(AttributeError):
        Settings({}).db_nothing  # noqa: B018


@pytest.mark.parametrize("option, remedy", [
    ("imdispatcher_wakeups_per_second", "take it out"), ("cron_db_host", "imdispatcher_db_host"),
    ("cron_db_port", "imdispatcher_db_port"),
])
@pytest.mark.parametrize("in_file", [False, True])
def test_what_is_no_setting_is_one_line(option, remedy, in_file):
    """One that is gone, and those of a proposal for the addon of OCA."""
    read = Settings({}, {option: "5"}) if in_file else Settings({option.upper(): "5"})
    problem, = read.problems
    assert (option if in_file else option.upper()) in problem and remedy in problem
    assert not read.fatal and read.values == DEFAULTS


@pytest.mark.parametrize("name, text", [
    ("db_password", SECRET), ("db_host", f"postgresql://odoo:{SECRET}@direct.example/postgres"),
    ("db_name", f"postgresql://odoo:{SECRET}@direct.example/postgres"), ("db_name", f"host=x password={SECRET}"),
    ("db_sslmode", f"password={SECRET}"), ("db_port", f"odoo:{SECRET}@direct.example"),
])
def test_a_password_is_in_no_text(name, text):
    read = Settings({env(name): text, env("metrics_port"): "abc"})
    assert len(read.problems) == (1 if name == "db_password" else 2)
    assert SECRET not in "\n".join([repr(read), str(read), *read.problems, *read.fatal, repr(read.sources)])
