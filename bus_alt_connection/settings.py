# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What the user asked for: the environment takes precedence, then odoo.conf.

A setting ``imdispatcher_X`` of odoo.conf's ``[options]`` is ``IMDISPATCHER_X`` in the environment,
or ``ODOO_IMDISPATCHER_X``, the name that the published addon reads. Empty is unset. A value that
is wrong is reported once, as one line, and Odoo starts all the same: an address or a timing then
counts as unset; with a wrong TLS or login setting there is no direct connection, never a weaker
one. No message contains a password.
"""

import ipaddress
import os
from collections import OrderedDict
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


class Invalid(ValueError):
    """A value that cannot be used; the message says what would be right."""


def _host(value: str) -> List[str]:
    return [_one_host(host.strip()) for host in value.split(",")]


def _one_host(host: str) -> str:
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


def _port(value: str) -> List[int]:
    return [_one_port(port.strip()) for port in value.split(",")]


def _one_port(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= 65535:
        raise Invalid("a whole number from 1 to 65535")
    return int(value)


def _sslmode(value: str) -> str:
    if value not in SSLMODES:
        raise Invalid("one of " + ", ".join(SSLMODES))
    return value


def _text(value: str) -> str:
    if "\0" in value:
        raise Invalid("text without a zero byte")
    return value


def _number(least: float, most: float, unit: str) -> Any:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            raise Invalid(f"a number of {unit}")
        if not least <= number <= most:
            raise Invalid(f"a number of {unit} from {least} to {most}")
        return number

    return parse


def _switch(value: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True}
    words.update({"0": False, "false": False, "no": False, "off": False})
    if value.lower() not in words:
        raise Invalid("one of true, false")
    return words[value.lower()]


# Where to connect: setting -> how its text is read. The files are read at each connect.
CONNECTION = OrderedDict(
    (
        ("db_host", _host),
        ("db_port", _port),
        ("db_user", _text),
        ("db_password", _text),
        ("db_password_file", _text),
        ("db_name", _text),
        ("db_sslmode", _sslmode),
        ("db_sslrootcert", _text),
    )
)
# Those of them that count as unset when they are wrong: what is connected to then is Odoo's own.
ADDRESS = ("db_host", "db_port")

# Everything else: setting -> (how its text is read, default).
OTHERS = OrderedDict(
    (
        # A path that falls silent is noticed within twice this time: a heartbeat goes out almost
        # as seldom as that allows. Raise it where each wake-up is paid for.
        ("heartbeat_seconds", (_number(0.05, 60, "seconds"), 5.0)),
        # PostgreSQL has to let a connection in within this time, and the host to answer within a
        # sixth of it. Raise it for a server far away.
        ("connect_timeout_seconds", (_number(0.05, 60, "seconds"), 5.0)),
        # While a listener is not listening the table is polled this often. Upstream looks back
        # 50 s for a subscriber that has not received anything yet.
        ("poll_seconds", (_number(0.05, 45, "seconds"), 5.0)),
        # After a loss subscribers are woken at most at this rate. Lower it for a small server.
        ("wakeups_per_second", (_number(1, 1000000, "subscribers"), 500.0)),
        # Whether NOTIFYs leave on a connection that is kept.
        ("keep_notify", (_switch, True)),
        # Whether the runner of OCA's queue_job, where it is loaded, connects as the listeners do.
        ("queue_job", (_switch, True)),
        # Where the metrics are served; without a port nowhere.
        ("metrics_port", (_one_port, None)),
        ("metrics_host", (_one_host, "127.0.0.1")),
    )
)


def server_wide_modules() -> List[str]:
    """The modules that Odoo's configuration loads server-wide."""
    from odoo.tools import config  # the rest of this file needs no Odoo

    modules = config.get("server_wide_modules") or ""
    if isinstance(modules, str):  # a list from series 19 on
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
    :ivar refused: one line for each that is wrong and without which nothing must be connected to
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        options: Optional[Mapping[str, Any]] = None,
        source: str = "odoo.conf",
    ) -> None:
        self._environ, self._source = environ, source
        self._options: Mapping[str, Any] = {} if options is None else options
        self.values: Dict[str, Any] = {}
        self.sources: Dict[str, str] = {}
        self.problems: List[str] = []
        self.refused: List[str] = []
        for name, parse in CONNECTION.items():
            self._read(name, parse)
        for name, (parse, default) in OTHERS.items():
            self._read(name, parse)
            self.values.setdefault(name, default)
        hosts, ports = self.values.get("db_host"), self.values.get("db_port")
        if ports and len(ports) > 1 and len(ports) != len(hosts or ()):
            self._reject("db_port", ",".join(map(str, ports)), "one port, or as many as hosts")

    @classmethod
    def of_odoo(cls) -> "Settings":
        """The settings of this process."""
        from odoo.tools import config

        source = config.get("config") or getattr(config, "rcfile", None) or "odoo.conf"
        return cls(os.environ, config, source)

    def _read(self, name: str, parse: Any) -> None:
        for source, value in self._found(name):
            if value in (None, False, "") and not (value is False and parse is _switch):
                continue
            self.sources[name] = source
            try:
                self.values[name] = parse(str(value).strip())
            except Invalid as exc:
                self._reject(name, value, exc)
            return

    def _found(self, name: str) -> Iterator[Tuple[str, Any]]:
        """Where a setting may stand; the first that is not empty counts."""
        option = "imdispatcher_" + name
        for variable in (option.upper(), "ODOO_" + option.upper()):
            yield f"environment variable {variable}", self._environ.get(variable, "").strip()
        yield f"{option} in {self._source}", self._options.get(option)

    def _reject(self, name: str, value: Any, right: Any) -> None:
        shown = "its value (not shown)" if name == "db_password" else repr(str(value))
        self.values.pop(name, None)
        effect = "which is ignored"
        if name in CONNECTION and name not in ADDRESS:
            effect = "so there is no direct connection"
        problem = f"{self.sources[name]} is {shown}, {effect}: it has to be {right}."
        self.problems.append(problem)
        if effect != "which is ignored":
            self.refused.append(problem)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name)

    @property
    def configured(self) -> bool:
        """Whether the listeners have an address of their own."""
        return any(name in self.values for name in ADDRESS)

    @property
    def auto(self) -> bool:
        """Whether PostgreSQL itself is to be asked for its address."""
        return self.values.get("db_host") == ["auto"]
