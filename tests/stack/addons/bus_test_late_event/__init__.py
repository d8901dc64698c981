"""A long poll of series 12 to 15 takes long from its look at the table to its wait, as under load; its log says when.

A NOTIFY that arrives meanwhile wakes nobody.
"""
import functools
import logging
import time

from odoo.addons.bus.models import bus

_logger = logging.getLogger(__name__)
SECONDS = 5


def late(start):
    @functools.wraps(start)
    def wrapper(self):
        started = start(self)
        made = self.Event

        def make():
            _logger.info("A long poll has read the table and does not wait yet")
            time.sleep(SECONDS)
            return made()

        self.Event = make
        return started
    return wrapper


bus.ImDispatch.start = late(bus.ImDispatch.start)
