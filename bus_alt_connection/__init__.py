# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Carry Odoo's live bus past a connection pooler, and keep it alive.

Loaded server-wide, never installed in a database. What is in force once it is loaded:

* a thread that listens (the bus dispatcher, every cron worker or thread) gets its connection from
  ``routing``; every other connection in every process is Odoo's own, untouched;
* upstream's loops run unchanged. What they wait on is a ``mailbox.Mailbox``, fed by a
  ``listener.Listener`` that holds the one direct connection and replaces it whenever it is lost;
* ``healing`` finds what was notified meanwhile, through Odoo's pooled connection.

Reading order: settings, link, mailbox, listener, healing, routing, dispatcher, cron, status; then what
administrators see: health, metrics, doctor.
"""

# cli: before series 19 Odoo finds the command by importing it.
from . import cli, server  # noqa: F401


def post_load():
    """Odoo calls this once in each server process, when the module is loaded server-wide."""
    server.install()
