# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Where connections go: Odoo's own address, the direct ones of the listeners, and their IP addresses.

An endpoint is a dict of libpq's keywords. What is set nowhere is as Odoo's own ``db_*`` says. Names are resolved by
Python and not by libpq, whose wait would stop the whole evented process.
"""

import ipaddress
import os
import socket
from typing import Any, Dict, List, Optional

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


def direct(settings: Settings) -> Endpoint:
    """Return the endpoint of the listening connection; of several hosts ``host`` and ``port`` are libpq's lists.

    :raises ConnectionLost: if a setting is wrong or a file cannot be read: nothing weaker is used
    """
    if settings.fatal:
        raise ConnectionLost("wrong setting: " + settings.fatal[0].rstrip("."))
    values, info = settings.values, pooled()
    for setting, keyword in (("db_name", "dbname"), ("db_user", "user"), ("db_password", "password"),
                             ("db_sslmode", "sslmode")):
        info[keyword] = values.get(setting, info.get(keyword))
    for setting, keyword in (("db_host", "host"), ("db_port", "port")):
        if setting in values:
            info[keyword] = ",".join(map(str, values[setting]))
    if "db_sslrootcert" in values:
        info["sslrootcert"] = path = values["db_sslrootcert"]
        # Odoo's own sslmode is "prefer" by default, with which libpq connects without TLS if the check fails.
        info["sslmode"] = values.get("db_sslmode", "verify-full")
        if path != "system" and not os.access(path, os.R_OK):
            source = settings.sources["db_sslrootcert"]
            raise ConnectionLost(f"wrong setting: {source} is {path!r}, which is no file that Odoo may read")
    if "db_password_file" in values and "db_password" not in values:
        info["password"] = _secret(values["db_password_file"])
    return {keyword: value for keyword, value in info.items() if value is not None}


def resolve(info: Endpoint) -> List[Endpoint]:
    """Return one endpoint for each address behind an endpoint's hosts, with ``hostaddr`` where it has a name.

    :raises ConnectionLost: if no host can be resolved
    """
    found, problem = [], None  # type: Any
    hosts = str(info.get("host") or os.environ.get("PGHOST") or "").split(",")
    ports = str(info.get("port") or os.environ.get("PGPORT") or "").split(",")
    for host, port in zip(hosts, ports if len(ports) == len(hosts) else ports[:1] * len(hosts)):
        one = dict(info, host=host or None, port=port or None)
        try:
            named = host and not host.startswith(("/", "@"))
            found += [dict(one, hostaddr=address) for address in _addresses(host, port)] if named else [one]
        except (OSError, UnicodeError) as exc:
            problem = ConnectionLost(f"could not resolve the host name: {one_line(exc)}", shown(one))
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
    """Return an endpoint for people: ``host:port/database as user``, with a name's address if that is known."""
    host = str(info.get("host") or os.environ.get("PGHOST") or "the local socket")
    host = f"[{host}]" if ":" in host else host
    if info.get("hostaddr") not in (None, info.get("host")):
        host += f" ({info['hostaddr']})"
    port = info.get("port") or os.environ.get("PGPORT") or 5432
    names = (str(info.get("dbname")), str(info.get("user") or os.environ.get("PGUSER") or "the system's user"))
    return f"{host}:{port}/" + " as ".join("(not shown)" if hidden(name) else name for name in names)


def _secret(path: str) -> str:
    try:
        with open(path) as stream:
            return stream.read().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConnectionLost(f"the password file {path} cannot be read: {exc}")
