"""A stand-in for what only older series have, and another addon that wraps the dispatcher.

In 15 the dispatcher has long polls, and wakes everyone who waits when the server stops. In 15 and 16 there is no
function to NOTIFY with unless the environment names one.
"""
import functools
import logging

from odoo.addons.bus.models import bus

_logger = logging.getLogger(__name__)


def wakeup_workers(self):
    _logger.info("woken up, the loop is told to end: %s", bus.stop_event.is_set())


def wrapped(run):
    @functools.wraps(run)
    def wrapper(self):      # its module has no stop_event
        return run(self)
    return wrapper


if not hasattr(bus.ImDispatch, "poll"):
    bus.ImDispatch.poll = lambda self, *args, **kwargs: []
bus.ImDispatch.wakeup_workers = wakeup_workers
bus.ImDispatch.run = wrapped(bus.ImDispatch.run)
bus.ODOO_NOTIFY_FUNCTION = None
