"""A stand-in for what only series 15 has: a dispatcher that wakes everyone who waits when the server stops."""
import logging

from odoo.addons.bus.models import bus

_logger = logging.getLogger(__name__)


def wakeup_workers(self):
    _logger.info("woken up, the loop is told to end: %s", bus.stop_event.is_set())


bus.ImDispatch.wakeup_workers = wakeup_workers
