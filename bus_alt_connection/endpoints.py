# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Where connections go: Odoo's own address, and the direct one of the listeners.

An endpoint is a dict of libpq's keywords. What is set nowhere is as Odoo's own ``db_*`` says.
"""

import os
from typing import Any, Dict, List, Optional, Tuple

from psycopg2 import extensions

import odoo.sql_db
from odoo.modules.registry import Registry
from odoo.tools import config

from .errors import ConnectionLost
from .settings import Settings

LOCAL = ("localhost", "::1")

# Which server and database this is: two connections with the same answer reach the same. A number,
# since a time as text depends on each role's time zone.
IDENTITY = (
    "(extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint, current_database()"
)
ADDRESS = (
    "SELECT host(inet_server_addr()), coalesce(inet_server_port(), current_setting('port')::int)"
)


def loaded_databases() -> List[str]:
    """The databases that this process has loaded."""
    registries = Registry.registries
    snapshot = getattr(registries, "snapshot", None)  # older series have a dict instead
    return list(registries.d if snapshot is None else snapshot)


def named_databases() -> List[str]:
    """The databases that ``db_name`` names: a list from series 19 on, before it text."""
    names = config.get("db_name") or []
    return names.split(",") if isinstance(names, str) else list(names)


def system_database() -> str:
    """The database that Odoo LISTENs and NOTIFYs in (a setting of Odoo's after series 19)."""
    return config.get("db_system") or "postgres"


def pooled(database: Optional[str] = None) -> Dict[str, Any]:
    """The endpoint that Odoo itself uses, a new dict.

    :param database: the system database if not given
    """
    database = database or system_database()
    info = dict(odoo.sql_db.connection_info_for(database)[1])
    info["dbname"] = info.pop("database", None) or database
    return info


def direct(settings: Settings, address: Optional[Tuple[str, int]] = None) -> List[Dict[str, Any]]:
    """The endpoints of the listening connection, in the order to try.

    :param address: (host, port) that PostgreSQL says of itself, for ``auto``
    :raises ConnectionLost: if a setting is wrong or a file cannot be read: nothing weaker is used
    """
    if settings.refused:
        raise ConnectionLost("wrong setting: " + settings.refused[0].rstrip("."))
    values = settings.values
    info = pooled()
    for setting, keyword in (
        ("db_name", "dbname"),
        ("db_user", "user"),
        ("db_password", "password"),
        ("db_sslmode", "sslmode"),
    ):
        info[keyword] = values.get(setting, info.get(keyword))
    if "db_sslrootcert" in values:
        source = settings.sources["db_sslrootcert"]
        info["sslrootcert"] = _root_certificate(values["db_sslrootcert"], source)
        if info["sslrootcert"] == "system":
            info["sslmode"] = values.get("db_sslmode", "verify-full")  # libpq allows nothing less
    # Read each time: a mounted secret may come later, or be renewed while Odoo runs.
    if "db_password_file" in values and "db_password" not in values:
        info["password"] = _secret(values["db_password_file"])
    hosts = values.get("db_host") or _listed(info.get("host"))
    ports = values.get("db_port") or _listed(info.get("port"))
    if settings.auto and address:
        hosts, ports = [address[0]], values.get("db_port") or [address[1]]
    if len(ports) != len(hosts):
        ports = ports[:1] * len(hosts)
    info = {keyword: value for keyword, value in info.items() if value is not None}
    return [dict(info, host=host, port=port) for host, port in zip(hosts, ports)]


def address_of(row: Tuple[Optional[str], int], asked: Optional[str]) -> Tuple[str, int]:
    """The address that PostgreSQL says of itself.

    :param row: its answer to ``ADDRESS``
    :param asked: the host that was asked, a pooler or not
    """
    host, port = row
    asked = asked or os.environ.get("PGHOST") or ""
    remote = asked and not asked.startswith(("/", "@", "127.")) and asked not in LOCAL
    if remote and (host is None or host.startswith("127.") or host in LOCAL):
        host = asked  # the pooler's own machine, as it is called from here
    return host or "localhost", port


def shown(info: Dict[str, Any]) -> str:
    """An endpoint for people: ``host:port/database as user``."""
    host = str(info.get("host") or os.environ.get("PGHOST") or "the local socket")
    host = f"[{host}]" if ":" in host else host
    port = info.get("port") or os.environ.get("PGPORT") or 5432
    user = info.get("user") or os.environ.get("PGUSER") or "the system's user"
    return f"{host}:{port}/{info.get('dbname')} as {user}"


def _listed(value: Any) -> List[Any]:
    """Odoo's own ``db_host`` and ``db_port`` may be libpq's lists, too."""
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
        raise ConnectionLost(
            f"wrong setting: {source} is {path!r} ({exc.strerror}): it has to be {right}"
        )


def _secret(path: str) -> str:
    try:
        with open(path) as stream:
            return stream.read().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConnectionLost(f"the password file {path} cannot be read: {exc}")
