import logging

from odoo import models

_logger = logging.getLogger(__name__)


class Bus(models.Model):
    _inherit = "bus.bus"

    def _sendone(self, *args):      # since series 15
        _logger.info("overridden bus.bus")
        return super()._sendone(*args)

    def sendone(self, *args):       # before
        _logger.info("overridden bus.bus")
        return super().sendone(*args)
