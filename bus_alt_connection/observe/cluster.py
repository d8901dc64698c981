# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The listeners and the NOTIFY queue as PostgreSQL sees them, those of other processes included.

Queries run on the pooled path, in the calling thread. Results are cached for 10 s.
"""

import functools
import logging
import os
from typing import Dict, List, NamedTuple, Optional, Set, Tuple

import psutil

from odoo.tools import config

from .. import endpoints, runtime
from ..errors import ConnectionLost
from ..pooled import PooledPath
from ..session import HOST
from ..settings import Settings

_logger = logging.getLogger(__name__)

# One row for each process of this host that has listeners, one for those of all other hosts.
QUERY = """
SELECT {usage}, listeners.* FROM (SELECT 1) AS once LEFT JOIN (
    SELECT part[2] AS listener, CASE WHEN part[4] = %s THEN part[5] END AS process,
        count(*), count(*) - count(state_change),
        extract(epoch FROM max(clock_timestamp() - state_change))::float8
    FROM pg_stat_activity, string_to_array(application_name, ' ') AS part
    WHERE application_name ~ '^bus_alt_connection (bus|cron) ' GROUP BY 1, 2
) AS listeners ON true"""
USAGE = "pg_notification_queue_usage()"


class Cluster(NamedTuple):
    queue_usage: Optional[float]  # of the NOTIFY queue, from 0 to 1; None before PostgreSQL 9.6
    # (listener's name, "host" for this server or "cluster") -> how many there are, and for how many seconds the one
    # that is silent the longest has sent nothing
    present: Dict[Tuple[str, str], int]
    silent: Dict[Tuple[str, str], float]
    lost: int  # processes of this server that run and have no listener of the bus any more


class Watch:
    """Ask PostgreSQL. Any thread or greenlet of the process may look."""

    KEPT_SECONDS = 10.0
    TIMEOUT = 2.0  # Prometheus gives up the whole scrape after 10 s: one connect and two answers

    def __init__(self) -> None:
        self._path = PooledPath(min(self.TIMEOUT, Settings.from_odoo().connect_timeout_seconds))
        self._looking = runtime.Lock()
        self._usage = USAGE
        self._served: Set[str] = set()  # processes of this server in which the bus has listened
        self._latest: Optional[Cluster] = None
        self._again_at, self._hidden_logged = 0.0, False  # the first of runtime.monotonic()

    def look(self) -> Optional[Cluster]:
        """Return what PostgreSQL said in the last seconds; None if it does not answer."""
        with self._looking:
            if runtime.monotonic() >= self._again_at:
                self._latest = self._ask()
                self._again_at = runtime.monotonic() + self.KEPT_SECONDS
            return self._latest

    def _ask(self) -> Optional[Cluster]:
        try:
            try:
                rows = self._rows()
            except ConnectionLost as exc:
                if not exc.refused:
                    raise
                self._usage = "NULL::float8"  # before PostgreSQL 9.6
                rows = self._rows()
            return self._read(rows)
        except (ConnectionLost, OSError, psutil.Error) as exc:
            _logger.debug("PostgreSQL's listeners are not known: %s", exc)
            return None

    def _rows(self) -> List[tuple]:
        return self._path.query(endpoints.system_database(), QUERY.format(usage=self._usage), (HOST,))

    def _read(self, rows: List[tuple]) -> Cluster:
        own = _processes()
        present = {(name, scope): 0 for name in ("bus", "cron") for scope in ("host", "cluster")}
        silent: Dict[Tuple[str, str], float] = {}
        served = {process for _, name, process, *_ in rows if name == "bus" and process in own}
        self._served = self._served.intersection(own) | served
        for _, name, process, number, hidden, seconds in rows:
            if hidden and not self._hidden_logged:
                self._hidden_logged = True
                _logger.warning(
                    "Odoo's role may not see the state of other roles' listeners: the metrics do not say how long"
                    " those are silent. Grant it pg_read_all_stats."
                )
            for key in present:
                if key == (name, "cluster") or key == (name, "host") and process in own:
                    present[key] += number
                    if seconds is not None:
                        silent[key] = max(seconds, silent.get(key, 0))
        return Cluster(rows[0][0], present, silent, len(self._served - served))


def _processes() -> List[str]:
    """Return the process ids of this server: of a prefork server all workers and evented processes."""
    parent = psutil.Process().parent() if config["workers"] else None
    return [str(each.pid) for each in parent.children()] if parent else [str(os.getpid())]


# That of this process.
watch = functools.lru_cache(maxsize=None)(Watch)
