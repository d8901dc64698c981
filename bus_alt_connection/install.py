# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Put the patches in place when the addon is loaded: those of the main job together, each other part by itself.

Contract: a part that does not fit this Odoo is one warning and changes nothing. The list of patches stands in the
docstring of the addon; ``patches()`` of each part returns its own as (owner, name, replacement).
"""

import importlib
import logging
from typing import Any, List, Tuple

import odoo
from odoo import release

from . import dispatcher, endpoints, routing
from .errors import ConnectionLost, one_line
from .settings import Settings, server_wide_modules

_logger = logging.getLogger(__name__)


def install() -> None:
    """Patch this process.

    :raises Exception: if the main job does not fit this Odoo; then nothing is changed
    """
    settings = Settings.from_odoo()
    for problem in settings.problems:
        _logger.error("Wrong setting: %s", problem)
    _put_in_place([*dispatcher.patches(), *routing.patches(settings.keep_notify)])
    for part in _extras(settings):
        try:
            _put_in_place(importlib.import_module(f"{__package__}.{part}").patches())
        except Exception as exc:  # any: the main job does not need it
            text = "Bus Alt Connection: its part %s does not fit this Odoo %s (%s) and is left out."
            _logger.warning(text, part, release.version, one_line(exc))
    _report(settings)


def _extras(settings: Settings) -> List[str]:
    """Return the modules that this process needs besides the main job."""
    found = ["cron", "observe.health", "mends.log_db"]
    # before 16 the dispatcher itself waits for each long poll
    found += ["mends.long_polls"] if hasattr(dispatcher.find()[1], "poll") else ["mends.history", "mends.websockets"]
    if settings.keep_notify:
        found.append("notifier")
    if not odoo.evented and "queue_job" in server_wide_modules():
        found.append("queue_job")
    if settings.metrics_port is not None:
        found.append("observe.metrics")
    return found


def _put_in_place(patches: List[Tuple[Any, str, Any]]) -> None:
    for owner, name, replacement in patches:
        setattr(owner, name, replacement)


def _report(settings: Settings) -> None:
    """Say where the listeners connect to."""
    try:
        address = endpoints.shown(endpoints.direct(settings))
    except ConnectionLost as exc:
        if not settings.fatal:  # those are logged already
            _logger.error("The listeners have no direct connection yet: %s.", exc)
        return
    own = "" if settings.configured else ", Odoo's own address: neither imdispatcher_db_host nor _db_port is set"
    _logger.info("The listeners of the bus and of cron connect to %s%s.", address, own)
