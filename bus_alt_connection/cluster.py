# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The listeners and the NOTIFY queue as PostgreSQL sees them, cron workers included.

It is asked on the pooled path, by the thread or greenlet that wants to know, which alone waits for
the answer; one answer serves everyone for some seconds.
"""

import contextlib
import functools
import logging
import threading
import time
from typing import Dict, List, NamedTuple, Optional, Tuple

import psutil

from odoo.tools import config

from . import endpoints
from .errors import ConnectionLost
from .recovery import PooledPath
from .session import HOST
from .settings import Settings
from .tasks import Tasks

_logger = logging.getLogger(__name__)

# One row for each process of this host that has listeners, one for those of all other hosts.
QUERY = """
SELECT usage, listeners.* FROM (SELECT pg_notification_queue_usage() AS usage) AS queue LEFT JOIN (
    SELECT part[2] AS listener, CASE WHEN part[4] = %s THEN part[5] END AS process,
        count(*), count(*) - count(state_change),
        extract(epoch FROM max(clock_timestamp() - state_change))::float8
    FROM pg_stat_activity, string_to_array(application_name, ' ') AS part
    WHERE application_name ~ '^bus_alt_connection (bus|cron) ' GROUP BY 1, 2
) AS listeners ON true"""


class Cluster(NamedTuple):
    queue_usage: float  # of the NOTIFY queue, from 0 to 1
    # (listener's name, "host" for this server or "cluster") -> how many there are, and for how many
    # seconds the one that is silent the longest has sent nothing
    present: Dict[Tuple[str, str], int]
    silent: Dict[Tuple[str, str], float]


class Watch:
    """Asks PostgreSQL. Any thread or greenlet of the process may look."""

    KEPT_SECONDS = 10.0
    TIMEOUT = 2.0  # Prometheus gives up the whole scrape after 10 s: one connect and two answers

    def __init__(self) -> None:
        self._path = PooledPath(min(self.TIMEOUT, Settings.of_odoo().connect_timeout_seconds))
        self._looking = threading.Lock()
        self._latest: Optional[Cluster] = None
        self._again_at, self._hidden_logged = 0.0, False  # the first of time.monotonic()

    def look(self) -> Optional[Cluster]:
        """What PostgreSQL said just now; None if it does not answer."""
        with self._looking:
            if time.monotonic() >= self._again_at:
                self._latest = self._ask()
                self._again_at = time.monotonic() + self.KEPT_SECONDS
            return self._latest

    def _ask(self) -> Optional[Cluster]:
        try:
            with contextlib.closing(Tasks()) as tasks:
                return self._read(tasks.run(self._rows()))
        except (ConnectionLost, OSError, psutil.Error) as exc:
            _logger.debug("PostgreSQL's listeners are not known: %s", exc)
            return None

    async def _rows(self) -> List[tuple]:
        await self._path.follow_the_name()
        return await self._path.query(endpoints.system_database(), QUERY, (HOST,))

    def _read(self, rows: List[tuple]) -> Cluster:
        parent = psutil.Process().parent() if config["workers"] else None
        own = {str(each.pid) for each in (parent.children() if parent else [psutil.Process()])}
        present = {(name, scope): 0 for name in ("bus", "cron") for scope in ("host", "cluster")}
        silent: Dict[Tuple[str, str], float] = {}
        for _, name, process, number, hidden, seconds in rows:
            if hidden and not self._hidden_logged:
                self._hidden_logged = True
                _logger.warning(
                    "Odoo's role may not see the state of other roles' listeners: the metrics do not"
                    " say how long those are silent. Grant it pg_read_all_stats."
                )
            for key in present:
                if key == (name, "cluster") or key == (name, "host") and process in own:
                    present[key] += number
                    if seconds is not None:
                        silent[key] = max(seconds, silent.get(key, 0))
        return Cluster(rows[0][0], present, silent)


# That of this process.
watch = functools.lru_cache(maxsize=None)(Watch)
