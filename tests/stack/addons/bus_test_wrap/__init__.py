"""Another addon that wraps the dispatcher's methods where they are, and overrides ``bus.bus``."""
import functools
import logging

from odoo.addons.bus.models import bus
from odoo.addons.bus.models.bus import dispatch  # as other addons import it

from . import models

_logger = logging.getLogger(__name__)


def wrapped(method):
    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        _logger.info("overridden %s on a dispatch that everyone has: %s", method.__name__, self is dispatch)
        return method(self, *args, **kwargs)
    return wrapper


bus.ImDispatch.run = wrapped(bus.ImDispatch.run)
bus.ImDispatch.loop = wrapped(bus.ImDispatch.loop)
