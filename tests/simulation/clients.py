"""The model of Odoo's bus: its dispatcher of each kind, and browsers, by upstream's own rules.

What is modelled: what each kind looks for in the table and what it remembers (12 to 15: the browser asks for what has a
higher id than all that it has seen; 16 to 19: each websocket has the id up to which it was sent all, and a history; 20:
each channel has both, and workers fetch), that an id of 0 shows the last 50 s, when a client that failed comes again.
What is not: sessions, users, frames, HTTP. Odoo's own queries succeed, fail or wait as the world is at that time.
"""
import bisect
import json

from .standins import ServerError

WAIT = 50.0             # seconds: how long a long poll waits, and how far back an id of 0 shows


class Browser:
    """A person's browser tab, which stays and comes again. `last`: the highest id that it asks from."""

    def __init__(self, world, number, database, channels, last):
        self.world, self.kernel, self.number, self.database = world, world.kernel, number, database
        self.channels, self.last = channels, last
        self.texts = [json.dumps(channel, separators=(",", ":")) for channel in channels]   # as they stand in the table
        self.session = None         # what is registered with the dispatcher now
        self.since = 0.0            # when that began
        self.received = {}          # row -> when
        self.went = False           # whether it does not come again

    def __repr__(self):
        return f"client {self.number}"

    def __hash__(self):
        return self.number          # a set of them has the same order in each run

    def begin(self):
        self.kernel.spawn(self.run, repr(self), process="odoo")

    def pause(self, seconds):
        deadline = self.kernel.now + seconds
        while not self.went and self.kernel.now < deadline:
            self.kernel.sleep(min(5.0, deadline - self.kernel.now))

    def receive(self, rows):
        """Rows reach the browser."""
        for row in rows:
            self.world.received(self, row)



class LongPoller(Browser):
    """12 to 15."""

    def run(self):
        dispatch, uniform = self.world.dispatch, self.kernel.random.uniform
        while not self.went:
            self.session, self.since = self, self.kernel.now
            first = self.last == 0
            try:
                rows = self.poll()
                if not rows:
                    woken = Event(self)
                    for channel in self.channels:
                        dispatch.channels.setdefault(channel, set()).add(woken)
                    # a new one waits shorter: mends/long_polls.py
                    self.kernel.wait(woken.waiting, self.world.first_poll if first else WAIT)
                    try:
                        rows = self.poll()
                    finally:
                        for channel in self.channels:
                            dispatch.channels.get(channel, set()).discard(woken)
            except ServerError:
                self.session = None
                self.pause(10.0 + uniform(1, 20))
                continue
            self.receive(rows)
            if rows:
                latest = max(row.id for row in rows)
                self.world.passed(self, [row for row in self.world.due.get(self, ()) if row.id < latest])
                self.last = max(self.last, latest)
            self.kernel.sleep(uniform(0.01, 0.2))   # to the browser, and the next request
        self.session = None

    def poll(self):
        return self.world.own_query(self.database, lambda rows, clock: [
            row for row in rows if row.channel in self.texts
            and (row.id > self.last if self.last else row.created > clock - WAIT)])

    def could_get(self, row):
        """Whether upstream's next query would return this row, if it is young enough."""
        return row.id > self.last

    def shows_the_latest_only(self):
        """Whether upstream's next query is for the rows of the last 50 s."""
        return self.last == 0


class Event:
    def __init__(self, browser):
        self.browser, self.kernel, self.waiting = browser, browser.kernel, []
        self.number = browser.number

    def __hash__(self):
        return self.number

    def set(self):
        self.browser.world.happens("wake", self.browser)
        self.kernel.wake(self.waiting)


class Tab(Browser):
    """16 on: a browser with a websocket."""

    def run(self):
        uniform = self.kernel.random.uniform
        while not self.went:
            delay = 1.0
            socket = self.world.dispatch.socket(self)
            try:
                self.world.own_query(self.database, lambda rows, clock: [])     # the session, at connect
                self.session, self.since = socket, self.kernel.now
                socket.serve()
            except ServerError:
                pass
            self.session = None
            self.world.dispatch.unsubscribe(socket)
            if not self.went:
                delay = min(delay * 1.5, 60.0)
                self.pause(delay + uniform(0, 1))

    def could_get(self, row):
        return self.session is not None and self.session.could_get(row)

    def shows_the_latest_only(self):
        return self.session.shows_the_latest_only()


class Websocket:
    """16 to 19."""

    HISTORY = 90.0      # mends/websockets.py; upstream: 10

    def __init__(self, dispatch, browser):
        self.dispatch, self.browser, self.kernel = dispatch, browser, browser.kernel
        self._last_notif_sent_id, self._notif_history = 0, []
        self.planned, self.waiting = False, []

    def __hash__(self):
        return self.browser.number

    def serve(self):
        browser = self.browser
        for channel in browser.channels:
            self.dispatch._channels_to_ws.setdefault(channel, set()).add(self)
        self._last_notif_sent_id = browser.last
        self.planned = True
        while not browser.went:
            if self.planned or self.kernel.wait(self.waiting, 30.0):
                self.send()
            elif self.dispatch.is_over:
                return

    def trigger_notification_dispatching(self):
        self.browser.world.happens("wake", self.browser)
        self.planned = True
        self.kernel.wake(self.waiting)

    def send(self):
        self.planned = False
        texts, last, known = self.browser.texts, self._last_notif_sent_id, {each for each, _ in self._notif_history}
        found = self.browser.world.own_query(self.browser.database, lambda rows, clock: [
            row for row in rows if row.channel in texts and row.id not in known
            and (row.id > last if last else row.created > clock - WAIT)])
        if not found:
            return
        found.sort(key=lambda row: row.id)
        now = self.kernel.now
        for row in found:
            bisect.insort(self._notif_history, (row.id, now))
        self._last_notif_sent_id, self._notif_history = aged(
            self._last_notif_sent_id, self._notif_history, now - self.HISTORY)
        self.browser.receive(found)
        self.browser.last = found[-1].id

    def could_get(self, row):
        last = self._last_notif_sent_id
        return row.id > last and all(row.id != each for each, _ in self._notif_history)

    def shows_the_latest_only(self):
        return self._last_notif_sent_id == 0


def aged(last, history, before):
    """The id up to which all was sent, and the rest of the history, without what was sent before a time."""
    count = 0
    while count < len(history) and history[count][1] < before:
        count += 1
    return (history[count - 1][0], history[count:]) if count else (last, history)


class Dispatch:
    """What all kinds have in common: the loop that waits on the listener's connection."""

    is_over = nested = False

    def __init__(self, world):
        self.world, self.kernel = world, world.kernel

    def loop(self):
        """Read what the listener delivers, until it is closed."""
        connection = self.world.listener.loop_connection
        while not self.is_over:
            if connection._reader.wait(WAIT):
                connection.poll()
                channels = []
                while connection.notifies:
                    channels.extend(json.loads(connection.notifies.pop().payload))
                self.relay([key(each, self.nested) for each in channels])


def key(channel, nested):
    """What a channel of a payload is looked up by."""
    if isinstance(channel, list):
        return tuple(key(each, True) for each in channel) if nested else tuple(channel)
    return channel


class LongPolls(Dispatch):
    browser = LongPoller

    def __init__(self, world):
        super().__init__(world)
        self.channels = {}

    def relay(self, channels):
        events = {}
        for channel in channels:
            events.update(dict.fromkeys(sorted(self.channels.pop(channel, ()), key=lambda event: event.number)))
        for event in events:
            event.set()


class Websockets(Dispatch):
    browser = Tab

    def __init__(self, world):
        super().__init__(world)
        self._channels_to_ws = {}

    def socket(self, browser):
        return Websocket(self, browser)

    def relay(self, channels):
        sockets = {}
        for channel in channels:
            sockets.update(dict.fromkeys(self._channels_to_ws.get(channel, ())))
        for socket in sockets:
            socket.trigger_notification_dispatching()

    def unsubscribe(self, socket):
        for channel in socket.browser.channels:
            sockets = self._channels_to_ws.get(channel, set())
            sockets.discard(socket)
            if not sockets:
                self._channels_to_ws.pop(channel, None)


class Topics(Dispatch):
    """20: one topic for each channel, with the state of its delivery; a worker fetches for all topics of a database."""

    browser, nested = Tab, True

    def __init__(self, world):
        super().__init__(world)
        self._topic_by_channel, self._queue, self._waiting = {}, {}, []
        self.kernel.spawn(self.work, "worker", process="odoo")

    def socket(self, browser):
        return TopicSocket(self, browser)

    def subscribe(self, socket):
        for channel in socket.browser.channels:
            topic = self._topic_by_channel.get(channel)
            if topic is None:
                topic = self._topic_by_channel[channel] = Topic(channel, socket.browser.last)
            topic.newcomers[socket] = socket.browser.last
            self.request(topic)

    def unsubscribe(self, socket):
        for channel in socket.browser.channels:
            topic = self._topic_by_channel.get(channel)
            if topic is not None:
                topic.sockets.pop(socket, None)
                topic.newcomers.pop(socket, None)
                topic.claimed.pop(socket, None)
                if not (topic.sockets or topic.newcomers or topic.in_flight):
                    del self._topic_by_channel[channel]
                    self._queue.pop(topic, None)

    def relay(self, channels):
        for channel in channels:
            topic = self._topic_by_channel.get(channel)
            if topic is not None:
                self.request(topic)

    def request(self, topic):
        if topic.in_flight:
            topic.dirty = True
        else:
            self._queue[topic] = None
            self.kernel.wake(self._waiting)

    def work(self):
        while not self.is_over:
            if not self._queue:
                self.kernel.wait(self._waiting, WAIT)
                continue
            database = next(iter(self._queue)).channel[0]
            topics = [topic for topic in self._queue if topic.channel[0] == database]
            for topic in topics:
                del self._queue[topic]
                topic.in_flight, topic.claimed, topic.newcomers = True, topic.newcomers, {}
            failed = False
            try:
                for topic, rows in self.fetch(database, topics):
                    self.dispatch(topic, rows)
            except ServerError:
                failed = True
                self.kernel.sleep(5.0)
            for topic in topics:
                dirty, topic.in_flight, topic.dirty = topic.dirty, False, False
                (topic.newcomers if failed else topic.sockets).update(topic.claimed)
                topic.claimed = {}
                if not (topic.sockets or topic.newcomers):
                    self._topic_by_channel.pop(topic.channel, None)
                elif dirty or failed:
                    self.request(topic)

    def fetch(self, database, topics):
        wanted = []
        for topic in topics:
            wanted.append((topic, json.dumps(topic.channel, separators=(",", ":")),
                           min([topic._last_fetched_id, *topic.claimed.values()])))
        return self.world.own_query(database, lambda rows, clock: [
            (topic, sorted((row for row in rows if row.channel == text and row.id > last), key=lambda row: row.id))
            for topic, text, last in wanted])

    def dispatch(self, topic, rows):
        for socket, last in list(topic.claimed.items()):
            socket.take([row for row in rows if row.id > last])
        known = {each for each, _ in topic._history}
        fresh = [row for row in rows if row.id > topic._last_fetched_id and row.id not in known]
        for socket in list(topic.sockets):
            socket.take(fresh)
        now = self.kernel.now
        for row in fresh:
            bisect.insort(topic._history, (row.id, now))
        topic._last_fetched_id, topic._history = aged(
            topic._last_fetched_id, topic._history, now - Websocket.HISTORY)


class Topic:
    def __init__(self, channel, last):
        self.channel, self._last_fetched_id, self._history = channel, last, []
        self.sockets, self.newcomers, self.claimed = {}, {}, {}
        self.in_flight = self.dirty = False


class TopicSocket:
    def __init__(self, dispatch, browser):
        self.dispatch, self.browser, self.kernel = dispatch, browser, browser.kernel
        self.waiting = []

    def serve(self):
        self.dispatch.subscribe(self)
        while not (self.browser.went or self.dispatch.is_over):
            self.kernel.wait(self.waiting, 30.0)

    def take(self, rows):
        if rows:
            self.browser.receive(rows)
            self.browser.last = rows[-1].id

    def could_get(self, row):
        topic = self.dispatch._topic_by_channel.get(tuple(json.loads(row.channel)))
        return topic is not None and row.id > topic._last_fetched_id and all(
            row.id != each for each, _ in topic._history)

    def shows_the_latest_only(self):
        return False


KINDS = {"14": LongPolls, "19": Websockets, "20": Topics}
