# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What the user asked for: environment first, then odoo.conf, then Odoo's own ``db_*``.

A setting ``imdispatcher_X`` of odoo.conf's ``[options]`` is ``IMDISPATCHER_X`` in the environment,
or ``ODOO_IMDISPATCHER_X``, the name that the published addon reads. Empty is unset. A value that
is wrong is reported once, as one line, and counts as unset: Odoo starts all the same. No value of
a password is ever part of a message.
"""

import ipaddress
import os
from collections import OrderedDict

import odoo.sql_db
from odoo.tools import config

SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


class Invalid(ValueError):
    """A value that cannot be used; the message says what would be right."""


def _host(value):
    hosts = [host.strip() for host in value.split(",")]
    return [_one_host(host) for host in hosts]


def _one_host(host):
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host:
        raise Invalid("a host name, an IP address or a socket folder, several of them with commas")
    if host.startswith(("/", "@")):
        return host
    if ":" in host:
        try:
            ipaddress.ip_address(host.split("%")[0])
        except ValueError:
            raise Invalid("a host without a port; the port has a setting of its own")
    if any(char.isspace() or char in "/'\"\\=" for char in host):
        raise Invalid("a host name, an IP address or a socket folder, without spaces or quotes")
    return host


def _port(value):
    ports = []
    for port in value.split(","):
        if not port.strip().isdecimal() or not 1 <= int(port) <= 65535:
            raise Invalid("a whole number from 1 to 65535")
        ports.append(int(port))
    return ports


def _sslmode(value):
    if value not in SSLMODES:
        raise Invalid("one of " + ", ".join(SSLMODES))
    return value


def _readable_file(value):
    try:
        with open(value, "rb"):
            return value
    except OSError as exc:
        raise Invalid("the path of a file that Odoo may read (%s)" % exc.strerror)


def _one_port(value):
    ports = _port(value)
    if len(ports) != 1:
        raise Invalid("a whole number from 1 to 65535")
    return ports[0]


def _text(value):
    if "\0" in value:
        raise Invalid("text without a zero byte")
    return value


def _seconds(value):
    try:
        seconds = float(value)
    except ValueError:
        raise Invalid("a number of seconds")
    if not 0.05 <= seconds <= 3600:
        raise Invalid("a number of seconds from 0.05 to 3600")
    return seconds


def _rate(value):
    if not value.isdecimal() or not 1 <= int(value) <= 1000000:
        raise Invalid("a whole number from 1 to 1000000")
    return int(value)


# Where to connect: setting -> how its text is read.
CONNECTION = OrderedDict(
    (
        ("db_host", _host),
        ("db_port", _port),
        ("db_user", _text),
        ("db_password", _text),
        ("db_password_file", _readable_file),
        ("db_name", _text),
        ("db_sslmode", _sslmode),
        ("db_sslrootcert", _readable_file),
    )
)

# How long and how often: setting -> (how its text is read, default). Nobody should need them.
TIMING = OrderedDict(
    (
        # A heartbeat goes out this often, and this long is waited for it to come back.
        # Their sum is the longest time that a silent loss stays unnoticed.
        ("heartbeat_seconds", (_seconds, 5.0)),
        ("heartbeat_timeout_seconds", (_seconds, 5.0)),
        # The host has to answer within the first, PostgreSQL within the second.
        ("tcp_timeout_seconds", (_seconds, 0.9)),
        ("connect_timeout_seconds", (_seconds, 5.0)),
        # Retries start at once and slow down to one in this time.
        ("retry_max_seconds", (_seconds, 0.6)),
        # While there is no listener the bus is asked for news this often, the pooled way.
        ("poll_seconds", (_seconds, 5.0)),
        # How long a notification may take from the pooled path to the listener.
        ("probe_timeout_seconds", (_seconds, 3.0)),
        # After a reconnect subscribers are woken at this rate.
        ("wakeups_per_second", (_rate, 500)),
    )
)


# Where the metrics are served: setting -> (how its text is read, default). Without a port nowhere.
METRICS = OrderedDict(
    (
        ("metrics_port", (_one_port, None)),
        ("metrics_host", (_one_host, "127.0.0.1")),
    )
)


class Settings(object):
    """One reading of the settings.

    :ivar dict values: setting (``"db_port"``) -> its value, only those that are set and right
    :ivar dict sources: setting -> where it came from, for people
    :ivar list problems: one line for each value that is wrong
    """

    def __init__(self, environ=None):
        environ = os.environ if environ is None else environ
        self.values = {}
        self.sources = {}
        self.problems = []
        self._system = system_database()
        for name, parse in CONNECTION.items():
            self._read(environ, name, parse)
        for name, (parse, default) in list(TIMING.items()) + list(METRICS.items()):
            self._read(environ, name, parse)
            self.values.setdefault(name, default)
        hosts, ports = self.values.get("db_host"), self.values.get("db_port")
        if ports and len(ports) > 1 and len(ports) != len(hosts or ()):
            self._reject("db_port", ",".join(map(str, ports)), "one port, or as many as hosts")

    def _read(self, environ, name, parse):
        for source, value in self._found(environ, name):
            if value in (None, False, ""):
                continue
            self.sources[name] = source
            try:
                self.values[name] = parse(str(value).strip())
            except Invalid as exc:
                self._reject(name, value, exc)
            return

    @staticmethod
    def _found(environ, name):
        """Where a setting may stand, the first that is not empty counts."""
        option = "imdispatcher_" + name
        for variable in (option.upper(), "ODOO_" + option.upper()):
            yield "environment variable " + variable, environ.get(variable, "").strip()
        if config.get(option):
            yield "%s in %s" % (option, _configuration_file()), config.get(option)

    def _reject(self, name, value, right):
        shown = "its value (not shown)" if name == "db_password" else repr(str(value))
        self.values.pop(name, None)
        self.problems.append(
            "%s is %s, which is ignored: it has to be %s."
            % (self.sources[name], shown, right)
        )

    def __getattr__(self, name):
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name)

    @property
    def configured(self):
        """True if the listener has an address of its own."""
        return any(name in self.values for name in ("db_host", "db_port"))

    @property
    def auto(self):
        """True if PostgreSQL itself is to be asked for its address."""
        return self.values.get("db_host") == ["auto"]

    def pooled(self, database=None):
        """libpq keywords of Odoo's own connection, as a new dict.

        :param str database: the system database, where NOTIFYs go, if not given
        """
        info = dict(odoo.sql_db.connection_info_for(database or self._system)[1])
        info["dbname"] = info.pop("database", None) or database or self._system
        return info

    def direct(self, told=None):
        """libpq keywords of the listening connection, one dict a host, in the order to try.

        :param tuple told: (host, port) that PostgreSQL told, if the host is to be "auto"
        :raises Invalid: if the password file cannot be read any more
        """
        info = self.pooled()
        info["dbname"] = self.values.get("db_name", info["dbname"])
        for key in ("user", "password", "sslmode", "sslrootcert"):
            if "db_" + key in self.values:
                info[key] = self.values["db_" + key]
        # Read each time: a mounted secret may be renewed while Odoo runs.
        if "db_password_file" in self.values and "db_password" not in self.values:
            info["password"] = _secret(self.values["db_password_file"])
        hosts = self.values.get("db_host") or _listed(info.get("host"))
        ports = self.values.get("db_port") or _listed(info.get("port"))
        if self.auto and told:
            hosts, ports = [told[0]], self.values.get("db_port") or [told[1]]
        if len(ports) != len(hosts):
            ports = ports[:1] * len(hosts)
        return [dict(info, host=host, port=port) for host, port in zip(hosts, ports)]


def _listed(value):
    """Odoo's own ``db_host`` and ``db_port`` may be libpq's lists, too."""
    return value.split(",") if isinstance(value, str) and "," in value else [value]


def _configuration_file():
    return config.get("config") or getattr(config, "rcfile", None) or "odoo.conf"


def _secret(path):
    try:
        with open(path) as stream:
            return stream.read().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise Invalid("the password file %s cannot be read: %s" % (path, exc))


def system_database():
    """The database that Odoo LISTENs and NOTIFYs in (a setting of Odoo's after series 19)."""
    return config.get("db_system") or "postgres"
