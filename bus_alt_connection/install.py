# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Put the patches in place when the addon is loaded: those of the main job together, each other part by itself.

Contract: a part that does not fit this Odoo is one warning and changes nothing. The list of patches stands in the
docstring of the addon; each part returns its own as (owner, name, replacement).
"""

import logging
from typing import Any, Callable, List, Tuple

import odoo
import odoo.http
import odoo.service.server
from odoo import release

from . import cron, dispatcher, endpoints, notifier, routing
from .errors import ConnectionLost, one_line
from .settings import Settings, server_wide_modules

_logger = logging.getLogger(__name__)

Patches = List[Tuple[Any, str, Any]]


def install() -> None:
    """Patch this process.

    :raises Exception: if the main job does not fit this Odoo; then nothing is changed
    """
    settings = Settings.from_odoo()
    for problem in settings.problems:
        _logger.error("Wrong setting: %s", problem)
    server = odoo.service.server
    main_job = [*dispatcher.patches(), *routing.patches(settings.keep_notify)]
    _put_in_place(main_job)
    _add("cron listeners", lambda: cron.patches(server))
    if settings.keep_notify:
        _add("end of idle NOTIFY connections in workers", lambda: notifier.patches(server))
    _add("health route", _health)
    _add("mends of upstream's bus", _mends)
    _add("log lines kept out of log_db", _log_filter)
    if not odoo.evented and "queue_job" in server_wide_modules():
        _add("queue_job", lambda: _queue_job(settings))
    if settings.metrics_port is not None:
        _add("metrics", _metrics)
    _report(settings)


def _put_in_place(patches: Patches) -> None:
    for owner, name, replacement in patches:
        setattr(owner, name, replacement)


def _add(part: str, patches: Callable[[], Patches]) -> None:
    """Install one part, or say that it does not fit."""
    try:
        _put_in_place(patches())
    except Exception as exc:  # any: it is not needed for the main job
        _logger.warning(
            "Bus Alt Connection: the part \"%s\" does not fit this Odoo %s (%s) and is left out; the bus works"
            " without it.",
            part, release.version, one_line(exc),
        )


def _health() -> Patches:
    from .observe import health

    return health.patches()


def _mends() -> Patches:
    from . import mends

    return mends.patches(dispatcher.find()[1])


def _queue_job(settings: Settings) -> Patches:
    from . import queue_job

    return queue_job.patches(settings)


def _metrics() -> Patches:
    from .observe import metrics

    return metrics.patches()


def _log_filter() -> Patches:
    """Odoo's handler for ``log_db`` connects, blocking, to a database that may be the one that is away."""
    for handler in logging.getLogger().handlers:
        if type(handler).__name__ == "PostgreSQLHandler":
            handler.addFilter(lambda record: not record.name.startswith(__package__))
    return []


def _report(settings: Settings) -> None:
    try:
        address = endpoints.shown(endpoints.direct(settings))
    except ConnectionLost as exc:
        if not settings.fatal:  # those are logged already
            _logger.error("The listeners have no direct connection yet: %s.", exc)
        return
    if settings.configured:
        _logger.info("The listeners of the bus and of cron connect to %s.", address)
    else:
        _logger.info(
            "Neither imdispatcher_db_host nor imdispatcher_db_port is set: the listeners stay on Odoo's own address"
            " %s.",
            address,
        )
