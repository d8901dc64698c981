# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Carry Odoo's live bus past a connection pooler, and keep it alive.

Loaded server-wide, never installed in a database. It patches, in each server process:

* ``odoo.sql_db.db_connect``: a thread that LISTENs gets a cursor on a direct connection, a function
  that NOTIFYs one whose NOTIFYs leave on a connection that is kept, see ``routing``;
* ``ImDispatch.run`` and ``.loop`` (after series 19 ``BusDispatcher.run`` and ``._listener_loop``):
  marked as a thread that LISTENs; the loop is called again at once if it fails;
* ``ImDispatch.poll`` (before series 16): a client that has received nothing yet waits less, see
  ``dispatcher``;
* ``ThreadedServer.cron_thread`` and ``WorkerCron.start``: marked; the thread is started again if it fails;
* ``Worker.check_limits``: a prefork worker closes the NOTIFY connection when it is idle, see ``notifier``;
* ``odoo.http.Application.__call__`` (before series 16 ``Root``): answers the health route;
* ``WebsocketConnectionHandler._serve_forever``, ``WebsocketRequest.serve_websocket_message`` (series 16
  on): a websocket whose query fails is ended, see ``websockets``;
* ``runner._connection_info_for`` of OCA's queue_job, where that is loaded: see ``queue_job``.

All of it is put in place, or none; but ``poll`` and the last three only where they are there. All of Odoo's
other connections are untouched.

Reading order: settings, endpoints, tasks with hub_selector, connection, backoff, errors, state,
session, listener; recovery with window and payloads; loop_connection, notifier, routing, dispatcher,
cron, websockets, queue_job, post_load; then what administrators see: cluster, health, metrics, doctor.
"""

# cli: before series 19 Odoo finds the command by importing it.
from . import cli  # noqa: F401
from .post_load import post_load  # noqa: F401
