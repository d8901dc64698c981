"""Logs each text that the dispatcher's loop parses: what reaches upstream's code, seen there."""
import logging

from odoo.addons.bus.models import bus

_logger = logging.getLogger(__name__)


class Parser:
    """The module that parses JSON there."""

    def __init__(self, module):
        self.module = module

    def loads(self, text):
        _logger.info("Upstream parses %s", text)
        return self.module.loads(text)

    def __getattr__(self, name):
        return getattr(self.module, name)


for name in ("orjson", "json"):     # the first since series 19
    if hasattr(bus, name):
        setattr(bus, name, Parser(getattr(bus, name)))
