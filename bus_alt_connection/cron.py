# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The cron listeners: ``ThreadedServer.cron_thread`` and ``WorkerCron``, from series 15 on.

They are marked as listeners; their loops are upstream's. Before series 15 they do not LISTEN, and
a mark without a LISTEN has no effect. A cron thread that fails is started again: upstream's ends
for ever when a query of its own fails while PostgreSQL is away.
"""

import functools
import inspect
import logging
import time
from typing import Any, Callable, List, Optional, Tuple

import odoo.service.server
from odoo.tools import config

from . import endpoints, errors, payloads, routing
from .backoff import Backoff

_logger = logging.getLogger(__name__)


def missing() -> Optional[str]:
    """What this Odoo lacks of what ``patches`` needs, or None."""
    server = odoo.service.server
    for owner, name in (("ThreadedServer", "cron_thread"), ("WorkerCron", "start")):
        if getattr(getattr(server, owner, None), name, None) is None:
            return f"odoo.service.server.{owner}.{name}"
    return None


def patches() -> List[Tuple[Any, str, Any]]:
    """The cron listeners, marked."""
    threaded, worker = odoo.service.server.ThreadedServer, odoo.service.server.WorkerCron
    in_thread = routing.listener_of(lambda upstream: Subscribers(_databases))
    # A worker looks at all its databases, whichever was named.
    in_worker = routing.listener_of(lambda upstream: Subscribers(lambda: [""]))
    return [
        (threaded, "cron_thread", _endless(in_thread(threaded.cron_thread))),
        (worker, "start", in_worker(worker.start)),
    ]


def expected() -> int:
    """How many cron listeners this server should have; before series 15 none."""
    start = inspect.unwrap(odoo.service.server.WorkerCron.start)
    constants = [each for each in start.__code__.co_consts if isinstance(each, str)]
    return int(config["max_cron_threads"]) if any(map(routing.LISTEN.match, constants)) else 0


def _endless(cron_thread: Callable) -> Callable:
    @functools.wraps(cron_thread)
    def endless_cron_thread(self: Any, *args: Any, **kwargs: Any) -> Any:
        backoff = Backoff(longest=5.0)
        while True:
            try:
                return cron_thread(self, *args, **kwargs)
            except Exception as exc:  # any: upstream's thread would end for ever, see above
                _logger.warning("A cron thread failed (%s) and goes on.", errors.one_line(exc))
            time.sleep(backoff.next())

    return endless_cron_thread


class Subscribers:
    """The jobs that a cron thread or worker runs.

    :param wakeups: gives the payloads that make its loop look at all of them
    """

    name = "cron"
    table = None

    def __init__(self, wakeups: Callable[[], List[str]]) -> None:
        self.wakeups = wakeups

    @staticmethod
    def notify_function() -> str:
        """The function that Odoo NOTIFYs with."""
        from odoo.addons.base.models import ir_cron

        return getattr(ir_cron, "ODOO_NOTIFY_FUNCTION", None) or "pg_notify"

    @staticmethod
    def accept(arrived: List[str]) -> payloads.Accepted:
        """Everything concerns the loop."""
        return payloads.Accepted(arrived, [], [])


def _databases() -> List[str]:
    """The databases whose jobs this process runs, as far as it knows without asking PostgreSQL.

    Upstream's loop looks at all of them once a minute; where it always does, any name will do.
    """
    return endpoints.named_databases() or endpoints.loaded_databases() or [""]
