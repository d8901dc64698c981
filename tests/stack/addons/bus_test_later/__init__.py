"""A stand-in for ``odoo.addons.bus.bus_dispatcher`` of the series after 19, which no machine here can run.

It has that module's shape as far as it can be seen from outside: the class and its attributes, who calls what, which
database it listens in, and that a worker of its own fetches what the loop queues. Nothing else of it is here.
"""
import collections
import contextlib
import json
import logging
import queue
import selectors
import sys
import threading
import types

import odoo
from odoo.tools import config

_logger = logging.getLogger(__name__)

stop_event = threading.Event()


class ChannelTopic:
    def __init__(self, channel):
        self._channel = channel
        self._state = "IDLE"


class BusDispatcher(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True, name="bus_dispatcher.Bus")
        self._topic_by_channel = {}
        self._lock_by_dbname = collections.defaultdict(threading.Lock)
        self._pending = queue.Queue()

    def subscribe(self, channels):
        for channel in channels:
            self._topic_by_channel.setdefault(channel, ChannelTopic(channel))
        if not self.is_alive():
            self.start()
            threading.Thread(target=self._worker_run, daemon=True).start()

    def run(self):
        self._run_with_retry(self._listener_loop, "Bus._listener_loop")

    def _run_with_retry(self, function, label):
        while not stop_event.is_set():
            try:
                function()
            except Exception:
                _logger.exception("%s error, sleep and retry.", label)
            stop_event.wait(20)

    def _listener_loop(self):
        with odoo.sql_db.db_connect(config["db_system"]).cursor() as cr, selectors.DefaultSelector() as selector:
            cr.execute("listen imbus")
            cr.commit()
            connection = cr._cnx
            selector.register(connection, selectors.EVENT_READ)
            while not stop_event.is_set():
                if not selector.select(50):
                    continue
                connection.poll()
                while connection.notifies:
                    for channel in json.loads(connection.notifies.pop().payload):
                        with contextlib.suppress(IndexError, TypeError):    # as there
                            self._notified((channel[0], *channel[1:]))

    def _notified(self, channel):
        with self._lock_by_dbname[channel[0]]:
            topic = self._topic_by_channel.get(channel)
            if topic is not None and topic._state == "IDLE":
                topic._state = "QUEUED"
                self._pending.put(topic)

    def _worker_run(self):
        while not stop_event.is_set():
            topic = self._pending.get()
            with self._lock_by_dbname[topic._channel[0]]:
                topic._state = "IDLE"
            _logger.info("fetched for %s", topic._channel)


dispatch = BusDispatcher()
module = types.ModuleType("odoo.addons.bus.bus_dispatcher")
module.BusDispatcher, module.dispatch, module.stop_event = BusDispatcher, dispatch, stop_event
sys.modules[module.__name__] = module


def when_all_are_loaded():
    """As if a browser had subscribed."""
    dispatch.subscribe([("demo", "later")])
