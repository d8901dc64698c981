# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The pooled path: statements at Odoo's own address, where NOTIFYs go and the table is.

Contract: one thread uses a path at a time. A connection to a pooler is kept, since there it costs no server
connection; one to PostgreSQL itself is closed. What this side gives up, the server gives up as well: statements have
a time limit there, and a log-in that the server does not finish is continued by the next query and not repeated.
"""

from typing import Any, Dict, List, Optional, Tuple

from . import endpoints
from .errors import ConnectionLost, TimedOut
from .link import Link

# A host that is gone while a log-in waits for it is noticed by TCP.
KEEPALIVES = {"keepalives": 1, "keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 3}


Identity = Tuple[int, str]  # see endpoints.IDENTITY


class PooledPath:
    """Connections to Odoo's own address.

    :param timeout: seconds for a connect, and for an answer
    """

    KEPT = 2  # the system database's and another one's; behind a session pooler each is a server connection

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._kept: Dict[str, Link] = {}
        self._started: Dict[str, Link] = {}  # log-ins that the server has not finished

    def query(self, database: str, sql: str, parameters: Optional[tuple] = None) -> List[tuple]:
        """Run a statement. If a kept connection turns out to be broken, it runs on a new one.

        :raises ConnectionLost: also if the server refuses the statement
        """
        link = self._kept.pop(database, None)
        if link is not None:
            try:
                return self._run(link, database, True, sql, parameters)
            except ConnectionLost as exc:
                if not exc.broken:
                    raise
        link = self._open(database)
        try:
            pid = link.query("SELECT pg_backend_pid()")[0][0]
        except BaseException:
            link.close()
            raise
        return self._run(link, database, pid != link.backend_pid, sql, parameters)

    def _run(self, link: Link, database: str, keep: bool, sql: str, parameters: Optional[tuple]) -> List[tuple]:
        try:
            rows = link.query(sql, parameters, server_limit=self._timeout * 0.9)
        except BaseException:
            link.close()
            raise
        if keep:
            for other in list(self._kept)[: max(0, len(self._kept) - self.KEPT + 1)]:
                self._kept.pop(other).close()
            self._kept[database] = link
        else:
            link.close()
        return rows

    def _open(self, database: str) -> Link:
        started = self._started.pop(database, None)
        problem: Any = None
        for target in [started] if started else endpoints.resolve(dict(endpoints.pooled(database), **KEEPALIVES)):
            try:
                link = started or Link(target, self._timeout)
            except ConnectionLost as exc:
                problem = exc
                continue
            try:
                link.connect()
                return link
            except TimedOut as exc:
                if link.answered:
                    self._started[database] = link
                    raise
                problem = exc
            except ConnectionLost as exc:
                problem = exc
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

    def close(self) -> None:
        """Close all connections."""
        for link in [*self._kept.values(), *self._started.values()]:
            link.close()
        self._kept.clear()
        self._started.clear()
