# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The pooled path: statements at Odoo's own address, where NOTIFYs go and the table is.

Contract: one thread uses a path at a time. A connection to a pooler is kept, since there it costs no server
connection; one to PostgreSQL itself is closed. What this side gives up, the server gives up as well: statements have
a time limit there, and a log-in that the server does not finish is continued by the next query and not repeated.
"""

from typing import Any, Dict, List, Optional, Tuple

from psycopg2 import extensions

from . import endpoints, runtime
from .errors import ConnectionLost, TimedOut
from .link import Link

Identity = Tuple[int, str]  # see endpoints.IDENTITY


class PooledPath:
    """Connections to Odoo's own address.

    :param timeout: seconds for a connect, and for an answer
    :param name: what PostgreSQL shows of them; a pooler has to change it where it differs from client to client
    :param always: whether a connection is kept also without a pooler

    :ivar connections: that were made
    """

    KEPT = 2  # the system database's and another one's; behind a session pooler each is a server connection
    STARTED = 4  # of hundreds of databases behind a pooler that hangs; the log-in to the others is given up each time

    def __init__(self, timeout: float, name: Optional[str] = None, always: bool = False) -> None:
        self._timeout, self._always = timeout, always
        self._kept: Dict[str, Link] = {}
        self._started: Dict[str, Link] = {}  # log-ins that the server has not finished
        self.connections = 0
        # A host that is gone is noticed by TCP, also while a log-in waits for it.
        self._parameters: Dict[str, Any] = {
            "application_name": name, "keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 3}
        if extensions.libpq_version() >= 120000:
            self._parameters["tcp_user_timeout"] = int(timeout / 6 * 1000)

    def query(
        self, database: str, sql: Any, parameters: Optional[Any] = None, seconds: Optional[float] = None
    ) -> List[tuple]:
        """Run a statement. If a kept connection turns out to be broken, it runs on a new one.

        :param seconds: for all of it; by default a connect and an answer have their time each
        :raises ConnectionLost: also if the server refuses the statement
        """
        deadline = runtime.monotonic() + (2 * self._timeout if seconds is None else seconds)
        link = self._kept.pop(database, None)
        if link is not None:
            try:
                return self._run(link, database, deadline, sql, parameters)
            except ConnectionLost as exc:
                if not exc.broken or runtime.monotonic() >= deadline:
                    raise
        link = self._open(database, deadline)
        try:
            keep = self._always or self._run(link, "", deadline, "SELECT pg_backend_pid()")[0][0] != link.backend_pid
            return self._run(link, database if keep else "", deadline, sql, parameters)
        finally:
            if self._kept.get(database) is not link:
                link.close()

    def _run(self, link: Link, keep: str, deadline: float, sql: Any, parameters: Any = None) -> List[tuple]:
        """Run a statement, and keep the connection for a database, if it is of use."""
        seconds = min(self._timeout, max(0.1, deadline - runtime.monotonic()))
        try:
            return link.query(sql, parameters, timeout=seconds, server_limit=seconds * 0.9)
        finally:
            if not link.usable:  # an answer that nobody has read may still come
                link.close()
            elif keep:
                while len(self._kept) >= self.KEPT or keep in self._kept:
                    others = [name for name in self._kept if name != endpoints.system_database()]
                    self._kept.pop(keep if keep in self._kept else others[0]).close()
                self._kept[keep] = link

    def _open(self, database: str, deadline: float) -> Link:
        started = self._started.pop(database, None)
        info = dict(endpoints.pooled(database), **self._parameters)
        targets = [started.info] if started else endpoints.resolve(info)
        problem: Any = None
        for number, target in enumerate(targets):
            link = started or Link(target, self._timeout)
            share = max(0.1, deadline - runtime.monotonic()) / (len(targets) - number)
            try:
                link.connect(min(share, self._timeout), self._timeout / 6)
                self.connections += 1
                return link
            except ConnectionLost as exc:
                problem = ConnectionLost(exc.reason, endpoints.shown(target))
                if isinstance(exc, TimedOut) and link.answered and len(self._started) < self.STARTED:
                    self._started[database] = link
                    break
            link.close()
        raise problem

    def identity(self) -> Identity:
        """Return which server and database NOTIFYs reach.

        :raises ConnectionLost: also if that server is a standby
        """
        if self._kept:
            addresses = [target.get("hostaddr") for target in endpoints.resolve(endpoints.pooled())]
            if any(link.info.get("hostaddr") not in addresses for link in self._kept.values()):
                self.close()  # the name leads elsewhere now
        return self._identity("")

    def notify(self, function: str, channel: str, payload: str) -> Identity:
        """Send a NOTIFY as Odoo does, and return the same."""
        function = function.replace('"', '""')
        return self._identity(f', "{function}"(%s, %s)', (channel, payload))

    def _identity(self, call: str, parameters: Optional[tuple] = None) -> Identity:
        sql = f"SELECT pg_is_in_recovery(), {endpoints.IDENTITY}{call}"
        standby, *identity = self.query(endpoints.system_database(), sql, parameters)[0]
        if standby:
            raise self.give_up_standby()
        return tuple(identity[:2])  # type: ignore

    def give_up_standby(self) -> ConnectionLost:
        """Close all connections: they lead to a server that was the primary when they were made."""
        self.close()
        return ConnectionLost("Odoo's own db_host leads to a standby")

    def reported_address(self) -> str:
        """Return which address PostgreSQL reports of itself, for people; empty if it does not answer."""
        try:
            sql = "SELECT host(inet_server_addr()), current_setting('port')"
            host, port = self.query(endpoints.system_database(), sql)[0]
        except ConnectionLost:
            return ""
        asked = endpoints.pooled().get("host") or ""
        if host is None or host.startswith("127.") or host == "::1":  # as the pooler calls it, on its own machine
            host = asked if asked and not asked.startswith("/") else "localhost"
        return f" (PostgreSQL reports imdispatcher_db_host = {host}, imdispatcher_db_port = {port})"

    def forget(self, database: str) -> None:
        """Close the connections to a database that is gone."""
        for links in (self._kept, self._started):
            link = links.pop(database, None)
            if link is not None:
                link.close()

    def close(self) -> None:
        """Close all connections."""
        for link in [*self._kept.values(), *self._started.values()]:
            link.close()
        self._kept.clear()
        self._started.clear()
