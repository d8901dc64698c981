# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The cron listeners: ``ThreadedServer.cron_thread`` and ``WorkerCron``, from series 15 on.

They are marked as listeners; their loops are upstream's. A cron thread that fails is started
again: upstream's ends for ever when a query of its own fails while PostgreSQL is away.
"""

import functools
import inspect
import logging
import time

import odoo.service.server
from odoo.modules.registry import Registry

from . import link, routing
from .backoff import Backoff

_logger = logging.getLogger(__name__)


def install():
    """Mark the cron listeners of this series, if it has any.

    :return: str, what is missing, or None
    """
    server = odoo.service.server
    threaded = getattr(getattr(server, "ThreadedServer", None), "cron_thread", None)
    worker = getattr(getattr(server, "WorkerCron", None), "start", None)
    if threaded is None or worker is None:
        return "odoo.service.server.ThreadedServer.cron_thread or WorkerCron.start"
    if "cron_trigger" not in inspect.getsource(server):
        return None  # before series 15 cron does not listen
    marked = routing.listener_of(lambda upstream: Cron())
    server.ThreadedServer.cron_thread = _endless(marked(threaded))
    server.WorkerCron.start = marked(worker)
    return None


def _endless(cron_thread):
    @functools.wraps(cron_thread)
    def endless_cron_thread(self, *args, **kwargs):
        backoff = Backoff(longest=5.0)
        while True:
            try:
                return cron_thread(self, *args, **kwargs)
            except Exception as exc:  # any: upstream's thread would end for ever, see above
                _logger.warning("A cron thread failed (%s) and goes on.", link.one_line(exc))
            time.sleep(backoff.next())

    return endless_cron_thread


class Cron(object):
    """A cron thread or worker as the owner of a listener."""

    name = "cron"
    table = None

    def __init__(self):
        self.listener = None  # set by the listener

    @staticmethod
    def accept(payload):
        return payload

    def waiting(self):
        """:return: dict: None -> dict: function that triggers the jobs of one database -> []"""
        return {
            None: {
                functools.partial(self.listener.deliver, "cron_trigger", name): []
                for name in _databases()
            }
        }


def _databases():
    """The databases whose jobs this process runs; where upstream looks at all, any name will do."""
    listing = getattr(odoo.service.server, "cron_database_list", None)
    return list(listing()) if listing else list(Registry.registries.d) or [""]
