# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Prometheus metrics of listeners, notifier and cluster, if ``imdispatcher_metrics_port`` is set.

One process of a server can have the port: the one that serves websockets, which is the evented
process, or the threaded server. What goes wrong here is one log line and nothing else.
"""

import logging
import threading
import time
from typing import Any, Dict, Iterator, List, Optional

import odoo
from odoo.tools import config

from . import cluster, cron, notifier
from .listener import Listener, listeners
from .settings import Settings
from .state import LISTENING

_logger = logging.getLogger(__name__)

_lock = threading.Lock()
_begun = False


def serve() -> None:
    """Serve the metrics from now on, if this process is to and does not do it already."""
    global _begun
    if not odoo.evented and config["workers"]:
        return  # a cron or HTTP worker, or their parent
    with _lock:
        if _begun:
            return
        _begun = True
    settings = Settings.of_odoo()
    if settings.metrics_port is None:
        return
    address = f"{settings.metrics_host} port {settings.metrics_port}"
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        _logger.error(
            "No metrics: imdispatcher_metrics_port is set, but Python has no prometheus_client."
            " Install it for the Python that runs Odoo."
        )
        return
    try:
        # A registry of its own: what others in this process register is not ours to publish.
        registry = CollectorRegistry()
        registry.register(Collector(settings))
        start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except Exception as exc:
        _logger.error(
            "No metrics: %s cannot be served (%s). Set imdispatcher_metrics_port to a free port.",
            address,
            exc,
        )
        return
    _logger.info("Metrics are served on %s.", address)


def _degraded(listener: Listener) -> float:
    since = listener.state.lost_at
    return listener.degraded_seconds + (0 if since is None else time.monotonic() - since)


def _round_trip(listener: Listener) -> Optional[float]:
    session = listener.session
    return None if session is None else session.round_trip


# Name without "bus_alt_connection_", what it says, how it is read, and how those of several cron
# threads become one. A total is a counter, the others are gauges; None is left out.
METRICS = (
    (
        "connected",
        "1 while notifications are known to arrive, else 0.",
        lambda listener: int(listener.state.phase == LISTENING),
        min,
    ),
    (
        "reconnects_total",
        "Connections that were made after the first.",
        lambda listener: max(0, listener.state.connections - 1),
        sum,
    ),
    (
        "degraded_seconds_total",
        "Time in which notifications were not known to arrive.",
        _degraded,
        sum,
    ),
    (
        "notifications_received_total",
        "Notifications that PostgreSQL sent.",
        lambda listener: listener.received,
        sum,
    ),
    (
        "malformed_total",
        "Notifications that were left out because they cannot be read.",
        lambda listener: listener.malformed,
        sum,
    ),
    (
        "wakeups_total",
        "Subscribers that were woken because the table had a row that they lacked.",
        lambda listener: listener.recovery.woken,
        sum,
    ),
    (
        "heartbeat_round_trip_seconds",
        "How long the latest heartbeat took to PostgreSQL and back.",
        _round_trip,
        max,
    ),
    (
        "last_notification_timestamp_seconds",
        "When the latest notification came, in seconds since 1970.",
        lambda listener: listener.last_received,
        max,
    ),
)

# The same of the notifier: what it is called in its snapshot.
NOTIFIER_METRICS = (
    ("notifications_sent_total", "NOTIFYs of this process that left.", "sent"),
    ("notifications_waiting", "NOTIFYs of this process that could not leave yet.", "waiting"),
    ("notifications_dropped_total", "NOTIFYs of this process that will not leave.", "dropped"),
    (
        "notifier_reconnects_total",
        "Connections that were made after the first, also of one that was idle before.",
        "reconnects",
    ),
)


def _family(name: str, text: str, **kwargs: Any) -> Any:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    return family("bus_alt_connection_" + name, text, **kwargs)


class Collector:
    """Reads them whenever Prometheus asks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def collect(self) -> Iterator[Any]:
        yield from self._listeners()
        if self._settings.keep_notify:
            counts = notifier.of_process().snapshot()
            for name, text, key in NOTIFIER_METRICS:
                yield _family(name, text, value=counts[key])
        yield from self._cluster()

    @staticmethod
    def _listeners() -> Iterator[Any]:
        by_name: Dict[str, List[Listener]] = {}
        for listener in listeners():
            by_name.setdefault(listener.subscribers.name, []).append(listener)
        for name, text, read, together in METRICS:
            metric = _family(name, text, labels=["listener"])
            for listener_name in sorted(by_name):
                values = [read(listener) for listener in by_name[listener_name]]
                values = [value for value in values if value is not None]
                if values:
                    metric.add_metric([listener_name], together(values))
            yield metric

    @staticmethod
    def _cluster() -> Iterator[Any]:
        metric = _family(
            "listeners_expected", "Listeners that this server should have.", labels=["listener"]
        )
        bus = [listener for listener in listeners() if listener.subscribers.name == "bus"]
        metric.add_metric(["bus"], len(bus))  # none before the first browser
        metric.add_metric(["cron"], cron.expected())
        yield metric
        seen = cluster.watch().look()
        if seen is None:
            return
        yield _family(
            "notify_queue_usage_ratio", "How full the NOTIFY queue is.", value=seen.queue_usage
        )
        for name, text, values in (
            ("listeners_present", "Listeners that PostgreSQL has.", seen.present),
            (
                "listeners_silent_seconds",
                "How long the one that is silent the longest has sent no heartbeat.",
                seen.silent,
            ),
        ):
            metric = _family(name, text, labels=["listener", "scope"])
            for labels, value in values.items():
                metric.add_metric(labels, value)
            yield metric
