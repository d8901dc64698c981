"""Another addon that subclasses the dispatcher and puts an object of its own in its place, as some do.

Its ``run`` is its own, its ``loop`` goes on to upstream's.
"""
import logging
import sys
import time

from odoo.addons.bus.models import bus

_logger = logging.getLogger(__name__)


class Dispatch(bus.ImDispatch):
    def run(self):
        while True:
            try:
                return self.loop()
            except Exception:
                _logger.exception("It goes on.")
                time.sleep(1)

    def loop(self):
        _logger.info("overridden loop on a dispatch that everyone has: %s", self is bus.dispatch)
        return super().loop()


if bus.dispatch is not None:    # an HTTP worker has none before series 16
    replaced, bus.dispatch = bus.dispatch, Dispatch()
    for module in list(sys.modules.values()):
        if module.__name__.startswith("odoo.addons.bus.") and getattr(module, "dispatch", None) is replaced:
            module.dispatch = bus.dispatch
