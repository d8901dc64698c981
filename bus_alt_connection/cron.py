# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The cron listeners: ``ThreadedServer.cron_thread`` and ``WorkerCron``, from 15 on.

They are marked as listeners; their loops are upstream's. Before 15 they do not LISTEN, and a mark without a LISTEN has
no effect. A cron thread that fails is started again: upstream's ends for ever when a query of its own fails while
PostgreSQL is away.
"""

import functools
import inspect
import logging
from typing import Any, Callable, List, Tuple

from odoo.tools import config

from . import endpoints, errors, routing, runtime

_logger = logging.getLogger(__name__)


def patches(server: Any) -> List[Tuple[Any, str, Any]]:
    """Return the cron listeners, marked.

    :param server: Odoo's module of its servers
    :raises AttributeError: if it lacks one
    """
    threaded, worker = server.ThreadedServer, server.WorkerCron
    in_thread = routing.listener_of(lambda upstream: Subscribers(_databases))
    # A worker looks at all its databases, whichever was named.
    in_worker = routing.listener_of(lambda upstream: Subscribers(lambda: [""]))
    return [
        (threaded, "cron_thread", _restart_cron_thread(in_thread(threaded.cron_thread))),
        (worker, "start", in_worker(worker.start)),
    ]


def expected_listeners(server: Any) -> int:
    """Return how many cron listeners a server should have; before 15 none."""
    code = inspect.unwrap(server.WorkerCron.start).__code__
    listens = any(isinstance(each, str) and routing.LISTEN.match(each) for each in code.co_consts)
    return int(config["max_cron_threads"]) if listens else 0


def _restart_cron_thread(cron_thread: Callable) -> Callable:
    @functools.wraps(cron_thread)
    def restarting_cron_thread(self: Any, *args: Any, **kwargs: Any) -> Any:
        backoff = runtime.Backoff()
        while True:
            try:
                return cron_thread(self, *args, **kwargs)
            except Exception as exc:  # any: upstream's thread would end for ever
                _logger.warning("A cron thread failed (%s) and goes on.", errors.one_line(exc))
            runtime.sleep(backoff.next())

    return restarting_cron_thread


def _databases() -> List[str]:
    """Return the databases whose jobs this process runs, as far as it knows without asking PostgreSQL.

    Upstream's loop looks at all of them once a minute; where it always does, any name will do.
    """
    return endpoints.named_databases() or endpoints.loaded_databases() or [""]


class Subscribers:
    """The jobs that a cron thread or worker runs.

    :param wakeups: returns the payloads that make its loop look at all of them
    """

    name = "cron"

    def __init__(self, wakeups: Callable[[], List[str]]) -> None:
        self.wakeups = wakeups
        self.recovery = Recovery

    @staticmethod
    def notify_function() -> str:
        """Return the function that Odoo NOTIFYs with."""
        from odoo.addons.base.models import ir_cron

        return getattr(ir_cron, "ODOO_NOTIFY_FUNCTION", None) or "pg_notify"

    @staticmethod
    def accept(channel: str, payload: str, report: Callable[[str, str], None]) -> bool:
        """Return True: everything concerns the loop."""
        return True


class Recovery:
    """Trigger the jobs whenever NOTIFYs may have been missed. It runs in the listener's thread."""

    CHECK_SECONDS = (20.0, 25.0)  # between questions where the pooled path leads

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self._since = -1.0  # of the listener's state that the jobs were triggered for
        self._again_at = self._check_at = 0.0
        self._round = 0.0  # seconds that the loop took for the latest wake-up
        self.woken = self.failed_looks = 0

    def start(self) -> None:
        """Start nothing: there is no thread."""

    def step_inline(self) -> None:
        """Trigger the jobs if that is due, and ask whether NOTIFYs still go where they went."""
        state, now = self._listener.state, runtime.monotonic()
        if state.lost_at is not None:
            self._poll(now)
            self._check_at = 0.0
        elif state.since != self._since:
            self._since = state.since
            self._trigger()
        elif now >= self._check_at:
            if self._check_at:
                self._listener.check_path(self._listener.path)
            self._check_at = now + runtime.uniform(*self.CHECK_SECONDS)

    def _trigger(self) -> None:
        for payload in self._listener.subscribers.wakeups():
            self._listener.loop_connection.deliver("cron_trigger", payload)
        self.woken += 1

    def _poll(self, now: float) -> None:
        """Trigger the jobs while there is no listener, never rounds without end.

        A loop that has not taken the latest wake-up is still busy; then it pauses three times as long as that took.
        """
        poll_seconds = self._listener.settings.poll_seconds
        if now < self._again_at:
            return
        if self._listener.loop_connection.signalled:
            self._round = min(self._round + poll_seconds, 4 * poll_seconds)
            self._again_at = now + poll_seconds
        else:
            pause, self._round = poll_seconds + 3 * self._round, 0.0
            self._again_at = now + pause
            self._trigger()
