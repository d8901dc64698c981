# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""One address: what the server behind it reports of itself, and whether a NOTIFY arrives there."""

import contextlib
from typing import Any, List, Optional, Tuple

from .. import dispatcher, runtime
from ..endpoints import IDENTITY, Endpoint, resolve, shown
from ..errors import ConnectionLost
from ..link import Link
from ..pooled import PooledPath
from ..settings import Settings

FACTS = {  # attribute of a probe -> what PostgreSQL is asked
    "pid": "pg_backend_pid()",
    "standby": "pg_is_in_recovery()",
    "user": "current_user",
    "version": "split_part(current_setting('server_version'), ' ', 1)",
    "host": "coalesce(host(inet_server_addr()), 'localhost')",
    "port": "coalesce(inet_server_port(), current_setting('port')::int)",
    "tls": "(SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid())",
    "allowed": "current_setting('max_connections')::int",
}


class Probe:
    """What is found at an address: FACTS, and ``identity`` as ``endpoints.IDENTITY``.

    :ivar milliseconds: that it took to answer
    :ivar pooler: whether the other side shows that it is one
    :ivar arrived: seconds that the NOTIFY took, None if it did not arrive
    :ivar unsent: why the NOTIFY could not be sent or waited for, or None
    """

    def __init__(self, info: Endpoint, settings: Settings, path: PooledPath, database: str, seconds: float) -> None:
        """Connect as a listener does, LISTEN, and have a NOTIFY sent; see ``probe_each``."""
        begun, timeout = runtime.monotonic(), settings.connect_timeout_seconds
        self.info, self.shown = info, shown(info)
        self.arrived = self.unsent = None  # type: Any
        with contextlib.closing(Link.open(info, timeout, timeout / 6)) as link:
            row = link.query(f"SELECT {', '.join(FACTS.values())}, {IDENTITY}")[0]
            self.__dict__.update(zip(FACTS, row), identity=row[-2:])
            self.milliseconds = (runtime.monotonic() - begun) * 1000
            self.pooler = self.pid != link.backend_pid
            if self.standby:
                raise ConnectionLost("the server is a standby (in recovery mode), where LISTEN is impossible")
            try:
                self.arrived = _notify(link, path, database, seconds)
            except ConnectionLost as exc:
                self.unsent = exc


def probe_each(info: Endpoint, *args: Any) -> Tuple[List[Probe], List[ConnectionLost]]:
    """Probe each address behind an endpoint.

    :param args: the settings; the path that sends a NOTIFY, in which database; the seconds that it may take
    :return: those that are of use, where it arrives first, and why the others are not
    """
    probes, problems = [], []
    try:
        targets = resolve(info)
    except ConnectionLost as exc:
        return [], [exc]
    for target in targets:
        try:
            probes.append(Probe(target, *args))
        except ConnectionLost as exc:
            problems.append(ConnectionLost(exc.reason, shown(target), exc.cause))
    unknown = set(filter(None, str(info.get("host") or "").split(","))) - {target["host"] for target in targets}
    problems += [ConnectionLost("could not resolve the host name", host) for host in sorted(unknown)]
    return sorted(probes, key=lambda probe: probe.arrived is None), problems


def _notify(link: Link, path: PooledPath, database: str, seconds: float) -> Optional[float]:
    channel = f'"bus_alt_connection_{runtime.token()}"'
    # Some poolers answer only the first of two statements: then there are no rows.
    backend = link.query(f"LISTEN {channel}; SELECT pg_backend_pid()")
    try:
        function = dispatcher.Subscribers.notify_function()
    except Exception:  # whatever Odoo's bus has against being imported: the server logs it
        function = "pg_notify"
    begun = runtime.monotonic()
    try:
        sql = 'SELECT "{}"(%s, %s)'.format(function.replace('"', '""'))
        path.query(database, sql, (channel.strip('"'), "doctor"))
        while link.wait(max(0.0, begun + seconds - runtime.monotonic())):
            if any(notify.channel in channel for notify in link.receive()):
                return runtime.monotonic() - begun
        return None
    finally:
        for _attempt in range(20):  # a pooler gives the backend to others: no LISTEN is left there
            if link.query(f"UNLISTEN {channel}; SELECT pg_backend_pid()") == backend:
                break
