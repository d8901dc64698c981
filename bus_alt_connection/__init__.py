# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Carry Odoo's live bus past a connection pooler, and keep it alive.

Loaded server-wide, never installed in a database. In each server process it patches:

* the main job, both or none: ``odoo.sql_db.db_connect``, which gives a thread that LISTENs a cursor on a direct
  connection and sends NOTIFYs on one that is kept (``routing``); ``ImDispatch.run`` and ``.loop``, from 20 on
  ``BusDispatcher.run`` and ``._listener_loop`` (``dispatcher``);
* each of these by itself, or one warning says which does not fit this Odoo: ``ThreadedServer.cron_thread`` and
  ``WorkerCron.start`` (``cron``); ``Worker.check_limits`` (``notifier``); the WSGI application's ``__call__``
  (``observe.health``); ``WebsocketConnectionHandler._serve_forever``, ``WebsocketRequest.serve_websocket_message``
  and the length of the clients' history, from 16 on (``mends``); ``ImDispatch.poll``, before 16 (``mends``);
  ``runner._connection_info_for`` of OCA's queue_job where that is loaded (``queue_job``); a filter that keeps this
  addon's log lines out of ``log_db`` (``mends.log_db``).

All of Odoo's other connections are untouched. Not loaded without need: ``observe.metrics`` and ``observe.cluster``
(a metrics port, or ``?scope=host``), ``queue_job``, ``doctor`` (its command), the ``mends`` of other versions.

Reading order: settings, endpoints, runtime, link, pooled, session, state, listener; loop_connection, notifier, routing,
dispatcher, recovery, cron, install.
"""

import logging

# cli: before 19 Odoo finds the command by importing it.
from . import cli  # noqa: F401


def post_load() -> None:
    """Install the patches; called by Odoo once in each server process. Odoo starts, whatever happens here."""
    try:
        from .install import install

        install()
    except Exception as exc:
        _logger = logging.getLogger(__name__)
        _logger.error("Bus Alt Connection could not be loaded, the bus is Odoo's own: %s: %s.", type(exc).__name__, exc)
        _logger.debug("Where that came from:", exc_info=True)
