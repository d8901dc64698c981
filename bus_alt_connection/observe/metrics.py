# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Prometheus metrics of listeners, notifier and cluster, where ``imdispatcher_metrics_port`` is set.

One process of a server can have the port: one that serves websockets, which is an evented process, or the threaded
server. What goes wrong here is one log line and nothing else.
"""

import errno
import functools
import logging
from typing import Any, Dict, Iterator, List, Optional, Tuple

import odoo
import odoo.service.server
from odoo.tools import config

from .. import cron, notifier, runtime
from ..listener import Listener, listeners
from ..settings import Settings
from ..state import LISTENING
from . import cluster

_logger = logging.getLogger(__name__)


def patches() -> List[Tuple[Any, str, Any]]:
    """Serve the metrics in this process if it is the one; of a threaded server once it runs."""
    if odoo.evented:
        serve()
    elif not config["workers"]:
        run = odoo.service.server.ThreadedServer.run

        @functools.wraps(run)
        def run_with_metrics(self: Any, *args: Any, **kwargs: Any) -> Any:
            serve()
            return run(self, *args, **kwargs)

        return [(odoo.service.server.ThreadedServer, "run", run_with_metrics)]
    return []


def serve() -> None:
    """Serve the metrics from now on. A port in use is tried again: a process that ends may have it for a while."""
    settings = Settings.from_odoo()
    address = f"{settings.metrics_host} port {settings.metrics_port}"
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        _logger.error(
            "No metrics: imdispatcher_metrics_port is set, but Python has no prometheus_client. Install it for the"
            " Python that runs Odoo."
        )
        return
    # A registry of its own: what others in this process register is not ours to publish.
    registry = CollectorRegistry()
    registry.register(Collector(settings))

    def bind() -> Optional[OSError]:
        try:
            start_http_server(settings.metrics_port, settings.metrics_host, registry)
        except OSError as exc:
            return exc
        _logger.info("Metrics are served on %s.", address)
        return None

    def bind_later() -> None:
        while bind() is not None:
            runtime.sleep(5)

    problem = bind()
    if problem is not None:
        retried = problem.errno == errno.EADDRINUSE
        text = "Set imdispatcher_metrics_host to an address of this machine."
        if retried:
            text = "Retrying; imdispatcher_metrics_port may name a free one."
        _logger.error("No metrics: %s cannot be served (%s). %s", address, problem, text)
        if retried:
            runtime.start_thread(bind_later, "metrics")


def _degraded(listener: Listener) -> float:
    since = listener.state.lost_at
    return listener.degraded_seconds + (0 if since is None else runtime.monotonic() - since)


# Name without "bus_alt_connection_", what it says, how it is read, and how those of several cron threads become one.
# A total is a counter, the others are gauges; None is left out.
METRICS = (
    ("connected", "1 while notifications are known to arrive, else 0.",
     lambda listener: int(listener.state.phase == LISTENING), min),
    ("reconnects_total", "Connections that were made after the first.",
     lambda listener: max(0, listener.state.connections - 1), sum),
    ("degraded_seconds_total", "Time in which notifications were not known to arrive.", _degraded, sum),
    ("notifications_received_total", "Notifications that PostgreSQL sent.", lambda listener: listener.received, sum),
    ("malformed_total", "Notifications that were left out because they cannot be read.",
     lambda listener: listener.malformed, sum),
    ("wakeups_total", "Subscribers that were woken because the table had a row that they lacked.",
     lambda listener: listener.recovery.woken, sum),
    ("failed_looks_total", "Looks at a database for undelivered notifications that failed.",
     lambda listener: listener.recovery.failed_looks, sum),
    ("heartbeat_round_trip_seconds", "How long the latest heartbeat took to PostgreSQL and back.",
     lambda listener: listener.session and listener.session.round_trip, max),
    ("last_notification_timestamp_seconds", "When the latest notification came, in seconds since 1970.",
     lambda listener: listener.last_received, max),
)

# The same of the notifier.
NOTIFIER_METRICS = (
    ("notifications_sent_total", "NOTIFYs of this process that left.", lambda each: each.sent),
    ("notifications_waiting", "NOTIFYs of this process that could not leave yet.",
     lambda each: max(len(each.queue), int(each.retrying))),
    ("notifications_dropped_total", "NOTIFYs of this process that will not leave.", lambda each: each.dropped),
    ("notifier_reconnects_total", "Connections that were made after the first, also of one that was idle before.",
     lambda each: max(0, each.path.connections - 1)),
)


def _family(name: str, text: str, **kwargs: Any) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    return family("bus_alt_connection_" + name, text, **kwargs)


class Collector:
    """Read the metrics whenever Prometheus asks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def collect(self) -> Iterator[Any]:
        """Yield the metric families, as ``prometheus_client`` wants them."""
        yield from self._listeners()
        if self._settings.keep_notify:
            for name, text, read in NOTIFIER_METRICS:
                yield _family(name, text, value=read(notifier.get_notifier()))
        yield from self._cluster()

    @staticmethod
    def _listeners() -> Iterator[Any]:
        by_name: Dict[str, List[Listener]] = {}
        for listener in listeners():
            by_name.setdefault(listener.subscribers.name, []).append(listener)
        for name, text, read, together in METRICS:
            metric = _family(name, text, labels=["listener"])
            for listener_name in sorted(by_name):
                values = [value for value in map(read, by_name[listener_name]) if value is not None]
                if values:
                    metric.add_metric([listener_name], together(values))
            yield metric

    @staticmethod
    def _cluster() -> Iterator[Any]:
        metric = _family("listeners_expected", "Listeners that this server should have.", labels=["listener"])
        metric.add_metric(["bus"], sum(listener.subscribers.name == "bus" for listener in listeners()))
        metric.add_metric(["cron"], cron.expected_listeners())
        yield metric
        seen = cluster.watch().look()
        if seen is None:
            return
        if seen.queue_usage is not None:
            yield _family("notify_queue_usage_ratio", "How full the NOTIFY queue is.", value=seen.queue_usage)
        for name, text, values in (
            ("listeners_present", "Listeners that PostgreSQL has.", seen.present),
            ("listeners_silent_seconds", "How long the one that is silent the longest has sent no heartbeat.",
             seen.silent),
        ):
            metric = _family(name, text, labels=["listener", "scope"])
            for labels, value in values.items():
                metric.add_metric(labels, value)
            yield metric
