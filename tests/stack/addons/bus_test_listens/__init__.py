"""Another addon that LISTENs on the connection of the bus, in the way that BUS_TEST_LISTENS names.

"own loop": it overrides the dispatcher's loop. "wrapped cursor": it adds its LISTEN to that of upstream's loop, which
then parses what arrives on both. Its log has each payload that reaches it.
"""
import json
import logging
import os
import select

import odoo

from odoo.addons.bus.models import bus

_logger = logging.getLogger(__name__)

CHANNEL = "bus_test_other"


def arrived(channel, payload):
    _logger.info("On %s arrived %s.", channel, json.dumps(payload))


def loop(self):
    with odoo.sql_db.db_connect("postgres").cursor() as cr:
        cr.execute("listen imbus")
        cr.execute(f"listen {CHANNEL}")
        cr.commit()
        connection = cr._cnx
        while True:
            if select.select([connection], [], [], 50)[0]:
                connection.poll()
                while connection.notifies:
                    notify = connection.notifies.pop(0)
                    if notify.channel == "imbus":
                        wake(self, json.loads(notify.payload))
                    else:
                        arrived(notify.channel, notify.payload)


def wake(dispatch, channels):
    for channel in map(bus.hashable, channels):
        if hasattr(dispatch, "channels"):       # before series 16
            for event in dispatch.channels.pop(channel, ()):
                event.set()
        else:
            for websocket in list(dispatch._channels_to_ws.get(channel, ())):
                websocket.trigger_notification_dispatching()


class Cursor:
    """Upstream's, which listens to one channel more."""

    def __init__(self, cursor):
        self.cursor = cursor

    def execute(self, query, *args, **kwargs):
        self.cursor.execute(query, *args, **kwargs)
        if query == "listen imbus":
            self.cursor.execute(f"listen {CHANNEL}")

    def __enter__(self):
        self.cursor.__enter__()
        return self

    def __exit__(self, *exc):
        return self.cursor.__exit__(*exc)

    def __getattr__(self, name):
        return getattr(self.cursor, name)


class Connection:
    def __init__(self, connection):
        self.connection = connection

    def cursor(self, *args, **kwargs):
        return Cursor(self.connection.cursor(*args, **kwargs))

    def __getattr__(self, name):
        return getattr(self.connection, name)


class Parser:
    """What upstream's loop parses with."""

    def __init__(self, module):
        self.module = module

    def loads(self, text):
        arrived("any channel", text)
        return self.module.loads(text)

    def __getattr__(self, name):
        return getattr(self.module, name)


def when_all_are_loaded():
    if os.environ["BUS_TEST_LISTENS"] == "wrapped cursor":
        db_connect = odoo.sql_db.db_connect
        odoo.sql_db.db_connect = lambda to, *args, **kwargs: (
            Connection(db_connect(to, *args, **kwargs)) if to == "postgres" else db_connect(to, *args, **kwargs))


if os.environ["BUS_TEST_LISTENS"] == "own loop":
    bus.ImDispatch.loop = loop
else:
    for name in ("orjson", "json"):     # the first since series 19
        if hasattr(bus, name):
            setattr(bus, name, Parser(getattr(bus, name)))
