# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Puts the patches in place when the addon is loaded: all of them, or none.

Never raises: an Odoo that it does not know keeps its own bus, and one error line says what is
missing.
"""

import logging

import odoo
from odoo import release

from . import cron, dispatcher, endpoints, health, metrics, queue_job, routing, websockets
from .errors import ConnectionLost, one_line
from .settings import Settings

_logger = logging.getLogger(__name__)

PARTS = (dispatcher, cron, health, routing, websockets)


def post_load() -> None:
    """Odoo calls this once in each server process, when the module is loaded server-wide."""
    try:
        _install()
    except Exception:  # Odoo must start, whatever it is like
        _logger.exception("Bus Alt Connection could not be loaded.")


def _install() -> None:
    settings = Settings.of_odoo()
    for problem in settings.problems:
        _logger.error("Wrong setting: %s", problem)
    for part in PARTS:
        missing = part.missing()
        if missing:
            _logger.error(
                "Bus Alt Connection does not support this Odoo %s: it has no %s. Nothing was"
                " changed in Odoo; look for a newer version of the addon.",
                release.version,
                missing,
            )
            return
    # All are made before the first is put in place: whatever raises meanwhile, none is.
    patches = [patch for part in PARTS for patch in part.patches()]
    for owner, name, replacement in patches:
        setattr(owner, name, replacement)
    if queue_job.loaded():
        try:
            queue_job.install(settings)
        except Exception as exc:  # Odoo itself says more when it imports it; the bus needs nothing of it
            _logger.warning("The runner of queue_job is left as it is: %s", one_line(exc))
    if odoo.evented:
        metrics.serve()  # elsewhere with the first listener, which here awaits the first browser
    _report(settings)


def _report(settings: Settings) -> None:
    if settings.auto:
        _logger.info("The listeners of the bus and of cron ask PostgreSQL for its address (auto).")
        return
    try:
        address = " or ".join(map(endpoints.shown, endpoints.direct(settings)))
    except ConnectionLost as exc:
        if not settings.refused:  # those are logged already
            _logger.error("The listeners have no direct connection yet: %s.", exc)
        return
    if settings.configured:
        _logger.info("The listeners of the bus and of cron connect to %s.", address)
    else:
        _logger.info(
            "Neither imdispatcher_db_host nor imdispatcher_db_port is set: the listeners stay on"
            " Odoo's own address %s.",
            address,
        )
