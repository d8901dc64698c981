# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Where connections go: Odoo's own address, the direct ones of the listeners, and their IP addresses.

An endpoint is a dict of libpq's keywords. What is set nowhere is as Odoo's own ``db_*`` says. Names are resolved by
Python and not by libpq, whose wait would stop the whole evented process.
"""

import ipaddress
import os
import socket
from typing import Any, Dict, List, Optional, Tuple

from psycopg2 import extensions

import odoo.sql_db
from odoo.modules.registry import Registry
from odoo.tools import config

from .errors import ConnectionLost, one_line
from .settings import Settings, hidden

Endpoint = Dict[str, Any]

# Which server and database this is: two connections with the same answer reach the same. A number, since a time as
# text depends on each role's time zone.
IDENTITY = "(extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint, current_database()"


def loaded_databases() -> List[str]:
    """Return the databases that this process has loaded."""
    registries = Registry.registries
    snapshot = getattr(registries, "snapshot", None)  # older series have a dict instead
    return list(registries.d if snapshot is None else snapshot)


def named_databases() -> List[str]:
    """Return the databases that ``db_name`` names: a list from 19 on, before it text."""
    names = config.get("db_name") or []
    return names.split(",") if isinstance(names, str) else list(names)


def system_database() -> str:
    """Return the database that Odoo LISTENs and NOTIFYs in, a setting of Odoo's from 20 on."""
    return config.get("db_system") or "postgres"


def pooled(database: Optional[str] = None) -> Endpoint:
    """Return the endpoint that Odoo itself uses.

    :param database: the system database if not given
    """
    database = database or system_database()
    info = dict(odoo.sql_db.connection_info_for(database)[1])
    info["dbname"] = info.pop("database", None) or database
    return info


def direct(settings: Settings) -> List[Endpoint]:
    """Return the endpoints of the listening connection, one for each host, in the order to try.

    :raises ConnectionLost: if a setting is wrong or a file cannot be read: nothing weaker is used
    """
    if settings.fatal:
        raise ConnectionLost("wrong setting: " + settings.fatal[0].rstrip("."))
    values, info = settings.values, pooled()
    for setting in ("db_name", "db_user", "db_password", "db_sslmode"):
        keyword = {"db_name": "dbname"}.get(setting, setting[3:])
        info[keyword] = values.get(setting, info.get(keyword))
    if "db_sslrootcert" in values:
        info["sslrootcert"] = _root_certificate(values["db_sslrootcert"], settings.sources["db_sslrootcert"])
        # Odoo's own sslmode is "prefer" by default, with which libpq connects without TLS if the check fails.
        info["sslmode"] = values.get("db_sslmode", "verify-full")
    # Read each time: a mounted secret may come later, or be renewed while Odoo runs.
    if "db_password_file" in values and "db_password" not in values:
        info["password"] = _secret(values["db_password_file"])
    hosts = values.get("db_host") or _listed(info.get("host"))
    ports = values.get("db_port") or _listed(info.get("port"))
    return _one_each({keyword: value for keyword, value in info.items() if value is not None}, hosts, ports)


def resolve(info: Endpoint) -> List[Endpoint]:
    """Return one endpoint for each address behind an endpoint's hosts, with ``hostaddr`` where it has a name.

    :param info: ``host`` and ``port`` may be libpq's lists with commas
    :raises ConnectionLost: if no host can be resolved
    """
    found, problem = [], None  # type: Any
    for one in _one_each(info, _listed(info.get("host") or os.environ.get("PGHOST")), _listed(info.get("port"))):
        host = one.get("host")
        if not host or host.startswith(("/", "@")):
            found.append(one)
            continue
        try:
            found += [dict(one, hostaddr=address) for address in _addresses(host, one.get("port"))]
        except (OSError, UnicodeError) as exc:
            problem = ConnectionLost(f"could not resolve the host name {host}: {one_line(exc)}")
    if not found:
        raise problem
    return found


def _addresses(host: str, port: Any) -> List[str]:
    try:
        ipaddress.ip_address(host.split("%")[0])
        return [host]
    except ValueError:
        answer = socket.getaddrinfo(host, port or None, 0, socket.SOCK_STREAM)
        return list(dict.fromkeys(entry[4][0] for entry in answer))


def shown(info: Endpoint) -> str:
    """Return an endpoint for people: ``host:port/database as user``, with its address if it is known and another."""
    host = str(info.get("host") or os.environ.get("PGHOST") or "the local socket")
    host = f"[{host}]" if ":" in host else host
    if info.get("hostaddr") not in (None, info.get("host")):
        host += f" ({info['hostaddr']})"
    port = info.get("port") or os.environ.get("PGPORT") or 5432
    user = info.get("user") or os.environ.get("PGUSER") or "the system's user"
    names = [str(info.get("dbname")), str(user)]
    database, user = ("(not shown)" if hidden(name) else name for name in names)
    return f"{host}:{port}/{database} as {user}"


def _one_each(info: Endpoint, hosts: List[Any], ports: List[Any]) -> List[Endpoint]:
    if len(ports) != len(hosts):
        ports = ports[:1] * len(hosts)
    return [dict(info, host=host, port=port) for host, port in zip(hosts, ports)]


def _listed(value: Any) -> List[Any]:
    """Return the items of what may be one of libpq's lists."""
    return value.split(",") if isinstance(value, str) and "," in value else [value]


def _root_certificate(path: str, source: str) -> str:
    if path == "system" and extensions.libpq_version() >= 160000:
        return path
    try:
        with open(path, "rb"):
            return path
    except OSError as exc:
        right = "the path of a file that Odoo may read"
        if path == "system":
            right += "; system needs libpq 16 or later"
        raise ConnectionLost(f"wrong setting: {source} is {path!r} ({exc.strerror}): it has to be {right}")


def _secret(path: str) -> str:
    try:
        with open(path) as stream:
            return stream.read().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConnectionLost(f"the password file {path} cannot be read: {exc}")


def reported_address(row: Tuple[Optional[str], int], asked: Optional[str]) -> Tuple[str, int]:
    """Return the (host, port) that PostgreSQL reports of itself, as it is called from here.

    :param row: its answer to ``ADDRESS``
    :param asked: the host that was asked, a pooler or not
    """
    host, port = row
    asked = asked or os.environ.get("PGHOST") or ""
    remote = asked and not asked.startswith(("/", "@", "127.")) and asked not in ("localhost", "::1")
    if remote and (host is None or host.startswith("127.") or host in ("localhost", "::1")):
        host = asked  # the pooler's own machine
    return host or "localhost", port


ADDRESS = "SELECT host(inet_server_addr()), coalesce(inet_server_port(), current_setting('port')::int)"
