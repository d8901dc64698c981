# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What the user asked for: the environment takes precedence over odoo.conf.

A setting ``imdispatcher_X`` of odoo.conf's ``[options]`` is ``IMDISPATCHER_X`` in the environment, or
``ODOO_IMDISPATCHER_X``, the name that OCA's addon reads. Empty is unset. A wrong value is reported once, in one line,
and Odoo starts all the same: an address or a timing then counts as unset; with a wrong TLS or login setting there is
no direct connection, never a weaker one. No message contains a password.
"""

import os
import re
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

CHECKED_MODES = ("require", "verify-ca", "verify-full")
SSLMODES = ("disable", "allow", "prefer", *CHECKED_MODES)


class Invalid(ValueError):
    """A value that cannot be used; the message says what would be right."""


def hidden(text: str) -> bool:
    """Return whether a text may hold a password, as a URL does."""
    return "@" in text.lstrip("@") or "password=" in text.lower() or "://" in text


def _list(parse: Callable[[str], Any]) -> Callable[[str], List[Any]]:
    return lambda value: [parse(item.strip()) for item in value.split(",")]


def _host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if host.startswith(("/", "@")):
        return host
    if host == "auto":
        raise Invalid("PostgreSQL's own address, which odoo bus_doctor shows: auto is no longer supported")
    if not re.match(r"[^\s/'\"\\=@]+$", host) or hidden(host):
        raise Invalid("a host name, an IP address or a socket folder, several of them with commas")
    if re.match(r"[^:]*:\d*$", host):
        raise Invalid("a host without a port; the port has a setting of its own")
    return host


def _port(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 65535:
        raise Invalid("a whole number from 1 to 65535")
    return int(value)


def _sslmode(value: str) -> str:
    if value not in SSLMODES:
        raise Invalid("one of " + ", ".join(SSLMODES))
    return value


def _database(value: str) -> str:
    if hidden(value) or "=" in value:
        raise Invalid("the name of a database, and no URL")
    return value


def _seconds(most: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        if not re.match(r"\d*\.?\d+$", value) or not 0.05 <= float(value) <= most:
            raise Invalid(f"a number of seconds from 0.05 to {most:g}")
        return float(value)

    return parse


def _switch(value: str) -> bool:
    words = ("0", "false", "no", "off", "1", "true", "yes", "on")
    if value.lower() not in words:
        raise Invalid("one of true, false")
    return words.index(value.lower()) >= 4


# Where to connect: setting -> how its text is read. Files are read at each connect.
CONNECTION = {
    "db_host": _list(_host),
    "db_port": _list(_port),
    "db_user": str,
    "db_password": str,
    "db_password_file": str,
    "db_name": _database,
    "db_sslmode": _sslmode,
    "db_sslrootcert": str,
}
# Those that count as unset when they are wrong: what is connected to then is Odoo's own.
ADDRESS = ("db_host", "db_port")

# Everything else: setting -> (how its text is read, default).
OTHERS = {
    # A silent path is noticed within twice this time. Raise it where each wake-up is paid for.
    "heartbeat_seconds": (_seconds(60), 5.0),
    # PostgreSQL has to let a connection in within this time, and the host to answer within a sixth of it.
    # Raise it for a server far away.
    "connect_timeout_seconds": (_seconds(60), 5.0),
    # While a listener is not listening the table is polled this often. Upstream looks back 50 s for a
    # subscriber that has not received anything yet.
    "poll_seconds": (_seconds(45), 5.0),
    # Whether NOTIFYs leave on a connection that is kept.
    "keep_notify": (_switch, True),
    # Whether the runner of OCA's queue_job, where it is loaded, connects as the listeners do.
    "queue_job": (_switch, True),
    # Where the metrics are served; without a port nowhere.
    "metrics_port": (_port, None),
    "metrics_host": (_host, "127.0.0.1"),
}
# Options that are not read -> what to do: one that is gone, and those of a proposal for OCA's server-tools (3692).
GONE = {
    "imdispatcher_wakeups_per_second": "take it out; subscribers are woken at one fixed pace",
    "cron_db_host": "imdispatcher_db_host is for the bus and for cron",
    "cron_db_port": "imdispatcher_db_port is for the bus and for cron",
}


def server_wide_modules() -> List[str]:
    """Return the modules that Odoo's configuration loads server-wide."""
    from odoo.tools import config  # the rest of this file needs no Odoo

    modules = config.get("server_wide_modules") or ""
    if isinstance(modules, str):  # a list from 19 on
        modules = modules.split(",")
    return [module.strip() for module in modules if module.strip()]


class Settings:
    """One reading of the settings; each is an attribute, with its default where it has one.

    :param environ: the environment
    :param options: Odoo's configuration
    :param source: where that was read from, for people

    :ivar values: setting (``"db_port"``) -> its value, only those that are set and right
    :ivar sources: setting -> where it came from, for people
    :ivar problems: one line for each value that is wrong
    :ivar fatal: one line for each that is wrong and forbids a direct connection
    """

    def __init__(
        self, environ: Mapping[str, str], options: Optional[Mapping[str, Any]] = None, source: str = "odoo.conf"
    ) -> None:
        self._environ, self._options, self._source = environ, options or {}, source
        self.values: Dict[str, Any] = {name: default for name, (_parse, default) in OTHERS.items()}
        self.sources: Dict[str, str] = {}
        self.problems: List[str] = []
        self.fatal: List[str] = []
        for name, parse in {**CONNECTION, **{name: parse for name, (parse, _default) in OTHERS.items()}}.items():
            for found, value in self._find("imdispatcher_" + name):
                self.sources[name] = found
                try:
                    if "\0" in value:
                        raise Invalid("text without a zero byte")
                    self.values[name] = parse(value)
                except Invalid as exc:
                    self._reject(name, value, exc)
                break  # the first takes precedence
        hosts, ports = self.values.get("db_host"), self.values.get("db_port")
        if ports and len(ports) > 1 and len(ports) != len(hosts or ()):
            self._reject("db_port", ",".join(map(str, ports)), "one port, or as many as hosts")
        mode = self.values.get("db_sslmode", "verify-full")
        if "db_sslrootcert" in self.values and mode not in CHECKED_MODES:
            self._reject("db_sslmode", mode, "verify-full or verify-ca where imdispatcher_db_sslrootcert is set")
        for option, remedy in GONE.items():
            for found, _value in self._find(option):
                self.problems.append(f"{found} is no setting of this addon: {remedy}.")

    @classmethod
    def from_odoo(cls) -> "Settings":
        """Return the settings of this process."""
        from odoo.tools import config

        return cls(os.environ, config, config.get("config") or getattr(config, "rcfile", None) or "odoo.conf")

    def _find(self, option: str) -> Iterator[Tuple[str, str]]:
        """Yield where a setting stands, and its value; what is empty is unset."""
        for variable in (option.upper(), "ODOO_" + option.upper()):
            yield from self._unless_empty(f"environment variable {variable}", self._environ.get(variable))
        value = self._options.get(option)
        switch = isinstance(OTHERS.get(option.replace("imdispatcher_", ""), (None, None))[1], bool)
        if value is not False or switch:  # Odoo's parsers make False of what is empty
            yield from self._unless_empty(f"{option} in {self._source}", value)

    @staticmethod
    def _unless_empty(found: str, value: Any) -> Iterator[Tuple[str, str]]:
        text = "" if value is None else str(value).strip()
        if text:
            yield found, text

    def _reject(self, name: str, value: str, right: Any) -> None:
        shown = "its value (not shown)" if name == "db_password" or hidden(value) else repr(value)
        self.values.pop(name, None)
        problem = f"{self.sources[name]} is {shown}, "
        if name in OTHERS or name in ADDRESS:
            self.values.update({name: OTHERS[name][1]} if name in OTHERS else {})
            self.problems.append(f"{problem}which is ignored: it has to be {right}.")
        else:
            self.fatal.append(f"{problem}so there is no direct connection: it has to be {right}.")
            self.problems.append(self.fatal[-1])

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name)

    @property
    def configured(self) -> bool:
        """Whether the listeners have an address of their own."""
        return any(name in self.values for name in ADDRESS)
