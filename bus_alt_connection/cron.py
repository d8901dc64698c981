# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The cron listeners: ``ThreadedServer.cron_thread`` and ``WorkerCron``, from 15 on.

They are marked as listeners; their loops are upstream's. Before 15 they do not LISTEN, and a mark without a LISTEN has
no effect. A cron thread that fails is started again: upstream's ends for ever when a query of its own fails while
PostgreSQL is away.
"""

import inspect
from typing import Any, Callable, List, Tuple

import odoo.service.server
from odoo.tools import config

from . import endpoints, routing, runtime


def patches() -> List[Tuple[Any, str, Any]]:
    """Return the cron listeners, marked.

    :raises AttributeError: if this Odoo lacks one
    """
    threaded, worker = odoo.service.server.ThreadedServer, odoo.service.server.WorkerCron
    in_thread = routing.mark(threaded.cron_thread, lambda upstream: Subscribers(_databases))
    return [
        (threaded, "cron_thread", routing.restart(in_thread, "A cron thread")),
        # A worker looks at all its databases, whichever was named.
        (worker, "start", routing.mark(worker.start, lambda upstream: Subscribers(lambda: [""]))),
    ]


def expected_listeners() -> int:
    """Return how many cron listeners this server should have; before 15 none."""
    code = inspect.unwrap(odoo.service.server.WorkerCron.start).__code__
    listens = any(isinstance(each, str) and routing.LISTEN.match(each) for each in code.co_consts)
    return int(config["max_cron_threads"]) if listens else 0


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
        self._triggered_for: Any = None  # the time since which the listener is LISTENING
        self._check_at = 0.0  # when to ask next where the pooled path leads
        self._polled_at = 0.0
        self._skip = 0  # polls
        self.woken = self.failed_looks = 0

    def start(self) -> None:
        """Start nothing: there is no thread."""

    def step_inline(self) -> None:
        """Trigger the jobs if that is due, and ask whether NOTIFYs still go where they went."""
        state, now = self._listener.state, runtime.monotonic()
        if state.lost_at is None and state.since != self._triggered_for:
            self._triggered_for = state.since
            self._check_at = now + runtime.uniform(*self.CHECK_SECONDS)
            self._trigger()
        elif state.lost_at is None and now >= self._check_at:
            self._check_at = now + runtime.uniform(*self.CHECK_SECONDS)
            self._listener.check_path(self._listener.path)
        elif state.lost_at is not None and now - max(state.lost_at, self._polled_at) >= self._poll_seconds:
            self._polled_at = now
            self._poll()

    @property
    def _poll_seconds(self) -> float:
        return self._listener.settings.poll_seconds

    def _trigger(self) -> None:
        for payload in self._listener.subscribers.wakeups():
            self._listener.loop_connection.deliver("cron_trigger", payload)
        self.woken += 1

    def _poll(self) -> None:
        """Trigger the jobs while there is no listener, never rounds without end."""
        if self._listener.loop_connection.signalled:
            self._skip = 3  # it is still busy with the round before: leave it as many pauses
        elif self._skip:
            self._skip -= 1
        else:
            self._trigger()
