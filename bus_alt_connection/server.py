# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Installs the parts when the addon is loaded, and says so in one line.

Never raises: an Odoo that it does not know keeps its own bus, and one error line says what is
missing.
"""

import logging

import odoo
from odoo import release

from . import cron, dispatcher, health, link, metrics, routing
from .settings import Invalid, Settings

_logger = logging.getLogger(__name__)


def install():
    """Put routing and healing in place in this process."""
    settings = Settings()
    for problem in settings.problems:
        _logger.error("Wrong setting: %s", problem)
    # The seam is put in place last, so that nothing is routed if anything is missing.
    for part in (dispatcher, cron, routing):
        missing = part.install()
        if missing:
            _logger.error(
                "This Odoo %s has no %s where Bus Alt Connection looks for it. Its bus stays as"
                " it is; a newer version of the addon may know it.",
                release.version,
                missing,
            )
            return
    missing = health.install()
    if missing:
        _logger.warning("No health route: this Odoo %s has no %s.", release.version, missing)
    if odoo.evented:
        metrics.serve()  # elsewhere with the first listener, which here awaits the first browser
    if settings.auto:
        _logger.info("The listeners of the bus and of cron ask PostgreSQL for its address (auto).")
        return
    try:
        address = " or ".join(link.place(info) for info in settings.direct())
    except Invalid as exc:
        address = "nowhere yet: %s" % exc
    if settings.configured:
        _logger.info("The listeners of the bus and of cron connect to %s.", address)
    else:
        _logger.info(
            "Neither imdispatcher_db_host nor imdispatcher_db_port is set: the listeners stay on"
            " Odoo's own address %s.",
            address,
        )
