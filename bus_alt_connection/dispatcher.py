# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The bus: whose listener the dispatcher's is, who waits there, how they are woken.

Upstream's dispatcher keeps its class, its object, its loop and its thread. Two of its methods are
wrapped: ``run`` and the loop, so that its thread is known as a listener's, also if another addon
overrides one of them; and the loop, so that an error in it costs a moment and not the 50 s that
upstream sleeps. All that differs between series stands in ``SERIES`` and ``find``.
"""

import contextlib
import functools
import json
import logging
import time

import odoo.service.server

from . import routing
from .backoff import Backoff

_logger = logging.getLogger(__name__)


def _websockets(bus, channel, waiting):
    return [websocket.trigger_notification_dispatching for websocket in waiting]


def _events(bus, channel, waiting):
    return [event.set for event in waiting]


def _topics(bus, channel, topic):
    # A topic has states that only upstream's loop may change: it hears of it as if from outside.
    return [functools.partial(bus.news, [json.dumps(channel)])]


# The attribute that says who waits, and what wakes one of them; the first that exists counts.
SERIES = (
    ("_topic_by_channel", _topics),  # after 19
    ("_channels_to_ws", _websockets),  # 16 to 19
    ("channels", _events),  # 12 to 15
)


def find():
    """Upstream's dispatcher.

    :return: (class, name of its loop), or (None, None) if there is none that is known
    """
    with contextlib.suppress(ImportError):
        from odoo.addons.bus.bus_dispatcher import BusDispatcher  # after 19

        return BusDispatcher, "_listener_loop"
    with contextlib.suppress(ImportError):
        from odoo.addons.bus.models.bus import ImDispatch  # 12 to 19

        return ImDispatch, "loop"
    return None, None


def install():
    """Wrap upstream's dispatcher.

    :return: str, what is missing, or None
    """
    upstream, loop = find()
    if upstream is None:
        return "the dispatcher of the bus (bus.models.bus.ImDispatch)"
    for name in ("run", loop):
        if not hasattr(upstream, name):
            return "bus dispatcher %s.%s" % (upstream.__name__, name)
    if hasattr(upstream, "wakeup_workers") and odoo.service.server.server is None:
        upstream.run = _ended_with_the_server(upstream.run)
    marked = routing.listener_of(Bus)
    upstream.run = marked(upstream.run)
    setattr(upstream, loop, marked(_repeated(getattr(upstream, loop))))
    return None


def _ended_with_the_server(run):
    """Series 15 has the server end its loop if there is a server when ``bus`` is imported.

    Where ``bus`` is loaded server-wide, as this addon has it, the server is only made afterwards.
    """

    @functools.wraps(run)
    def run_until_the_server_stops(self, *args, **kwargs):
        server = odoo.service.server.server
        if server is not None:
            server.on_stop(run.__globals__["stop_event"].set)
            server.on_stop(self.wakeup_workers)
        return run(self, *args, **kwargs)

    return run_until_the_server_stops


def _repeated(loop):
    @functools.wraps(loop)
    def repeated_loop(self, *args, **kwargs):
        backoff = Backoff(longest=5.0)
        while True:
            try:
                return loop(self, *args, **kwargs)
            except Exception:  # any: upstream would sleep for 50 s, see above
                if _server_stops(loop):
                    raise
                _logger.warning("The loop of the bus failed and goes on.", exc_info=True)
            time.sleep(backoff.next())

    return repeated_loop


def _server_stops(loop):
    """Whether upstream has told its loop to end (series from 15 on can)."""
    event = loop.__globals__.get("stop_event")
    return event is not None and event.is_set()


class Bus(object):
    """The bus as the owner of a listener.

    :param dispatch: upstream's dispatcher
    """

    name = "bus"
    table = "bus_bus"

    def __init__(self, dispatch):
        self.listener = None  # set by the listener
        self._dispatch = dispatch
        for attribute, wakers in SERIES:
            if hasattr(dispatch, attribute):
                self._attribute, self._wakers = attribute, wakers
                break

    def _channels(self):
        return getattr(self._dispatch, self._attribute)

    def accept(self, payload):
        """What upstream's loop is to see of a payload.

        Only channels that someone here waits for: a server with a thousand databases notifies
        them all, and those of others cost one parsing and no turn of the loop.

        :return: str, or None if nothing is left
        :raises ValueError: if the payload is not a list of channels
        """
        channels = json.loads(payload)
        if not isinstance(channels, list):
            raise ValueError("not a list of channels")
        here = self._channels()
        wanted = []
        for channel in channels:
            try:
                if _key(channel) in here:
                    wanted.append(channel)
            except TypeError:
                self.listener.trouble.bad_payload("imbus", payload)
        if not wanted:
            return None
        return payload if len(wanted) == len(channels) else json.dumps(wanted)

    def waiting(self):
        """Who waits.

        :return: dict: database (None if unknown) -> dict: function that wakes one -> list of
            channels, as ``keys`` has them
        """
        found = {}
        for channel, waiting in _copy(self._channels()):
            database = None
            if isinstance(channel, tuple) and channel and isinstance(channel[0], str):
                database = channel[0]
            for wake in self._wakers(self, channel, waiting):
                # One that waits on several channels is woken once: bound methods compare equal.
                found.setdefault(database, {}).setdefault(wake, []).append(channel)
        return found

    @staticmethod
    def keys(channels):
        """:return: set of channels as upstream keeps them, of what stands in the table"""
        found = set()
        for channel in channels:
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                found.add(_key(json.loads(channel)))
        return found

    def news(self, channels):
        """Have upstream's loop wake who waits on channels.

        :param list channels: each as it stands in the table, JSON text
        """
        payload = self.accept("[%s]" % ",".join(channels))
        if payload is not None:
            self.listener.deliver("imbus", payload)


def _key(channel):
    """A channel as upstream keeps it: tuples for lists, which can be looked up.

    :raises TypeError: if it can be no key (there is a dict in it)
    """
    if isinstance(channel, list):
        return tuple(_key(part) for part in channel)
    hash(channel)
    return channel


def _copy(channels):
    """The items of a dict of collections that other threads change meanwhile."""
    while True:
        try:
            return [
                (channel, list(waiting) if isinstance(waiting, (set, list)) else waiting)
                for channel, waiting in list(channels.items())
            ]
        except RuntimeError:
            continue  # changed size during iteration; the next try sees the change
