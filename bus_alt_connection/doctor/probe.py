# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""One address: what the server behind it reports of itself, and whether a NOTIFY arrives there."""

from typing import List, Optional

from .. import dispatcher, endpoints, runtime
from ..errors import ConnectionLost
from ..link import Link
from ..pooled import PooledPath
from ..settings import Settings

# Attribute of a probe -> what PostgreSQL is asked.
FACTS = {
    "pid": "pg_backend_pid()",
    "standby": "pg_is_in_recovery()",
    "user": "current_user",
    "version": "split_part(current_setting('server_version'), ' ', 1)",
    "host": "coalesce(host(inet_server_addr()), 'localhost')",
    "port": "coalesce(inet_server_port(), current_setting('port')::int)",
    "tls": "(SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid())",
    "allowed": "current_setting('max_connections')::int",
    "reserved": "current_setting('superuser_reserved_connections')::int",
    "held": "(SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL)",
    "held_by_role": "(SELECT count(*) FROM pg_stat_activity WHERE usename = current_user)",
    "role_limit": "coalesce((SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user), -1)",
}


class Probe:
    """What is found at an address: FACTS, unless ``lost`` says why it is of no use.

    :ivar milliseconds: that it took to answer
    :ivar pooler: whether the other side shows that it is one
    :ivar arrived: seconds that the NOTIFY took, None if it did not arrive
    :ivar unsent: why the NOTIFY could not be sent or waited for, or None
    """

    def __init__(self, info: endpoints.Endpoint, lost: Optional[ConnectionLost] = None) -> None:
        self.info, self.lost = info, lost
        self.shown = endpoints.shown(info)
        self.arrived: Optional[float] = None
        self.unsent: Optional[ConnectionLost] = None

    def run(self, settings: Settings, path: PooledPath, database: str, seconds: float) -> None:
        """Connect as a listener does, LISTEN, and have a NOTIFY sent.

        :param path: sends it, in that database
        :param seconds: that it may take
        """
        begun = runtime.monotonic()
        try:
            with Link.open(self.info, settings.connect_timeout_seconds, settings.connect_timeout_seconds / 6) as link:
                row = link.query(f"SELECT {', '.join(FACTS.values())}, {endpoints.IDENTITY}")[0]
                self.__dict__.update(zip(FACTS, row), identity=row[-2:])
                self.milliseconds = (runtime.monotonic() - begun) * 1000
                self.pooler = self.pid != link.backend_pid
                if self.standby:
                    raise ConnectionLost("the server is a standby (in recovery mode), where LISTEN is impossible")
                try:
                    self.arrived = _notify(link, path, database, seconds)
                except ConnectionLost as exc:
                    self.unsent = exc
        except ConnectionLost as exc:
            self.lost = ConnectionLost(exc.reason, self.shown, exc.cause)


def probe_each(
    info: endpoints.Endpoint, settings: Settings, path: PooledPath, database: str, seconds: float
) -> List[Probe]:
    """Probe each address behind an endpoint; those that are of use come first.

    :raises ConnectionLost: if no host can be resolved
    """
    probes = [Probe(target) for target in endpoints.resolve(info)]
    for probe in probes:
        probe.run(settings, path, database, seconds)
    unknown = set(filter(None, str(info.get("host") or "").split(","))) - {probe.info["host"] for probe in probes}
    probes += [Probe(info, ConnectionLost("could not resolve the host name", host)) for host in sorted(unknown)]
    return sorted(probes, key=lambda probe: (probe.lost is not None, probe.arrived is None))


def _notify(link: Link, path: PooledPath, database: str, seconds: float) -> Optional[float]:
    """Return the seconds that a NOTIFY takes to a connection."""
    channel = f'"bus_alt_connection_{runtime.token()}"'
    # Some poolers answer only the first of two statements: then there are no rows.
    backend = link.query(f"LISTEN {channel}; SELECT pg_backend_pid()")
    begun = runtime.monotonic()
    try:
        function = _notify_function().replace('"', '""')
        path.query(database, f'SELECT "{function}"(%s, %s)', (channel.strip('"'), "doctor"))
        left = seconds
        while left > 0 and link.wait(left):
            if any(notify.channel in channel for notify in link.receive()):
                return runtime.monotonic() - begun
            left = begun + seconds - runtime.monotonic()
        return None
    finally:
        for _attempt in range(20):  # a pooler gives the backend to others: no LISTEN is left there
            if link.query(f"UNLISTEN {channel}; SELECT pg_backend_pid()") == backend:
                break


def _notify_function() -> str:
    """Return the function that Odoo NOTIFYs with: its role may be allowed no other."""
    try:
        return dispatcher.Subscribers.notify_function()
    except Exception:  # whatever Odoo's bus has against being imported: the server logs it
        return "pg_notify"
