"""A stand-in for `odoo.addons.bus.bus_dispatcher`: its classes, attributes and threads, and it delivers.

A topic is one channel. A NOTIFY queues the topics of its channels, a worker fetches what each has not fetched yet and
gives it to its websockets. A websocket waits in its topic's waiting room for the rows from its own last id on.
"""
import collections
import enum
import json
import logging
import queue
import selectors
import sys
import threading
import time
import types

import psycopg2

import odoo
from odoo.service.server import CommonServer
from odoo.sql_db import db_connect  # the workers' own, bound here as in 20
from odoo.tools import config

from odoo.addons.bus.models import bus

_logger = logging.getLogger("odoo.addons.bus.bus_dispatcher")

BATCH_RETRY_DELAY = 5
ERROR_RETRY_DELAY = 20
POLL_TIMEOUT = 50

stop_event = threading.Event()


class DispatchState(enum.Enum):
    IDLE = "IDLE"
    QUEUED = "QUEUED"
    IN_FLIGHT = "IN_FLIGHT"
    DIRTY = "DIRTY"         # in flight, and notified meanwhile


class ChannelTopic:
    MAX_HISTORY_SEC = 10    # how long a row may be late

    def __init__(self, channel, last_fetched_id):
        self._channel, self._dbname = channel, channel[0]
        self._state = DispatchState.IDLE
        self._last_fetched_id = last_fetched_id
        self._history = []  # [(id, time.monotonic() of when it was fetched)] of those beyond, by id
        self._waiting_room = {}
        self._websockets = frozenset()

    def fetch(self, cr, waiting):
        """The rows that a subscriber may lack, by id, and those of them that the full subscribers lack."""
        known = {number for number, _ in self._history}
        cr.execute("SELECT id, message FROM bus_bus WHERE channel = %s AND id > %s ORDER BY id",
                   [bus.json_dump(self._channel), min([self._last_fetched_id, *waiting.values()])])
        rows = [{"id": number, "message": json.loads(message)} for number, message in cr.fetchall()]
        return rows, [row for row in rows if row["id"] > self._last_fetched_id and row["id"] not in known]

    def send(self, rows, websockets):
        text = json.dumps(rows)
        for websocket in websockets if rows else ():
            websocket.send(text)

    def _update_history(self, notifications):
        now = time.monotonic()
        self._history = sorted([*self._history, *((row["id"], now) for row in notifications)])
        # what is old enough, up to the first that is not: all below a number are forgotten with it
        while self._history and now - self._history[0][1] > self.MAX_HISTORY_SEC:
            self._last_fetched_id = max(self._last_fetched_id, self._history.pop(0)[0])


class BusDispatcher(threading.Thread):
    def __init__(self):
        super().__init__(daemon=True, name="odoo.addons.bus.bus_dispatcher.Bus")
        self._start_lock = threading.Lock()
        self._pending_dbname_queue = queue.Queue()
        self._lock_by_dbname = collections.defaultdict(threading.Lock)
        self._pending_topics_by_db = collections.defaultdict(set)
        self._topic_by_channel = {}
        self._topics_by_websocket = {}

    def subscribe(self, channels, last_fetched_id, websocket):
        with self._lock_by_dbname[websocket._db]:
            current, topics = self._topics_by_websocket.get(websocket, set()), set()
            for channel in channels:
                topic = self._topic_by_channel.get(channel)
                if topic is None:
                    topic = self._topic_by_channel[channel] = ChannelTopic(channel, last_fetched_id)
                topics.add(topic)
                if topic not in current:
                    topic._waiting_room[websocket] = last_fetched_id
                    self._mark(topic)
            for topic in current - topics:
                self._leave(topic, websocket)
            self._topics_by_websocket[websocket] = topics
        with self._start_lock:
            if not self.is_alive() and not stop_event.is_set():
                self.start()
                for number in range(4 if odoo.evented else 1):
                    threading.Thread(target=self._worker_run, daemon=True, name=f"BusDispatcherWorker-{number}").start()

    def unsubscribe(self, websocket):
        with self._lock_by_dbname[websocket._db]:
            for topic in self._topics_by_websocket.pop(websocket, ()):
                self._leave(topic, websocket)

    def _leave(self, topic, websocket):
        topic._websockets -= {websocket}
        topic._waiting_room.pop(websocket, None)
        self._drop_if_empty(topic)

    def _drop_if_empty(self, topic):
        claimed = topic._state in (DispatchState.IN_FLIGHT, DispatchState.DIRTY)
        if not (claimed or topic._websockets or topic._waiting_room):
            self._topic_by_channel.pop(topic._channel, None)

    def _mark(self, topic):
        """There is something for it, or may be."""
        if topic._state is DispatchState.IDLE:
            topic._state = DispatchState.QUEUED
            self._pending_topics_by_db[topic._dbname].add(topic)
            self._pending_dbname_queue.put(topic._dbname)
        elif topic._state is DispatchState.IN_FLIGHT:
            topic._state = DispatchState.DIRTY

    # -- the listener

    def run(self):
        self._run_with_retry(self._listener_loop, "Bus._listener_loop")

    def _run_with_retry(self, fn, label):
        while not stop_event.is_set():
            try:
                fn()
            except Exception:
                if not stop_event.is_set():
                    _logger.exception("%s error, sleep and retry.", label)
            stop_event.wait(ERROR_RETRY_DELAY)

    def _listener_loop(self):
        _logger.info("Bus._listener_loop listen imbus on db %s", config["db_system"])
        with odoo.sql_db.db_connect(config["db_system"]).cursor() as cr, selectors.DefaultSelector() as selector:
            cr.execute("listen imbus")
            cr.commit()
            connection = cr._cnx
            selector.register(connection, selectors.EVENT_READ)
            while not stop_event.is_set():
                if not selector.select(POLL_TIMEOUT):
                    continue
                connection.poll()
                while connection.notifies:
                    for channel in json.loads(connection.notifies.pop().payload):
                        self._notified(channel)

    def _notified(self, channel):
        try:
            dbname, key = channel[0], as_tuple(channel)
        except (IndexError, TypeError):
            return      # malformed
        with self._lock_by_dbname[dbname]:
            topic = self._topic_by_channel.get(key)
            if topic is not None:
                self._mark(topic)

    # -- the workers

    def _worker_run(self):
        self._run_with_retry(self._worker_loop, "Bus._worker_run")

    def _worker_loop(self):
        while not stop_event.is_set():
            try:
                dbname = self._pending_dbname_queue.get(timeout=POLL_TIMEOUT)
            except queue.Empty:
                continue
            with self._lock_by_dbname[dbname]:
                claimed = {topic: topic._waiting_room for topic in self._pending_topics_by_db.pop(dbname, ())}
                for topic in claimed:
                    topic._state, topic._waiting_room = DispatchState.IN_FLIGHT, {}
            done = False
            try:
                with db_connect(dbname).cursor() as cr:
                    found = {topic: topic.fetch(cr, waiting) for topic, waiting in claimed.items()}
                for topic, (rows, new) in found.items():
                    for websocket, last in claimed[topic].items():
                        topic.send([row for row in rows if row["id"] > last], [websocket])
                    topic.send(new, topic._websockets)
                    topic._update_history(new)
                done = True
            except psycopg2.Error:
                _logger.exception("Bus._worker_loop: failed to fetch notifications for db %s.", dbname)
                stop_event.wait(BATCH_RETRY_DELAY)
            finally:
                self._release(dbname, claimed, done)

    def _release(self, dbname, claimed, done):
        with self._lock_by_dbname[dbname]:
            for topic, waiting in claimed.items():
                again = topic._state is DispatchState.DIRTY or not done
                topic._state = DispatchState.IDLE
                waiting = {each: last for each, last in waiting.items()
                           if topic in self._topics_by_websocket.get(each, ())}
                if done:
                    topic._websockets |= set(waiting)
                else:
                    topic._waiting_room.update(waiting)
                self._drop_if_empty(topic)
                if again and topic._channel in self._topic_by_channel:
                    self._mark(topic)


def as_tuple(value):
    return tuple(map(as_tuple, value)) if isinstance(value, (list, tuple)) else value


dispatch = BusDispatcher()
CommonServer.on_stop(stop_event.set)

module = types.ModuleType("odoo.addons.bus.bus_dispatcher")
for part in (DispatchState, ChannelTopic, BusDispatcher):
    part.__module__ = module.__name__
    setattr(module, part.__name__, part)
module.dispatch, module.stop_event = dispatch, stop_event
sys.modules["odoo.addons.bus"].bus_dispatcher = sys.modules[module.__name__] = module
for name in ("ImDispatch", "BusSubscription", "dispatch", "stop_event"):
    delattr(bus, name)
