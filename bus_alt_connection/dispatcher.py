# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The bus: upstream's dispatcher, its subscribers, and how they are woken.

Upstream's dispatcher keeps its class, its object, its loop and its thread. Two of its methods are wrapped: ``run`` and
the loop, so that its thread is known as a listener's, also if another addon overrides one of them; the loop besides,
so that an error in it costs a moment and not the 20 to 50 s that upstream sleeps. All that differs between versions
stands in ``SERIES`` and ``find``.
"""

import contextlib
import functools
import json
from typing import Any, Callable, Dict, Hashable, Iterable, List, NamedTuple, Optional, Tuple

from . import endpoints, routing
from .recovery import Recovery


class Series(NamedTuple):
    subscribers: str  # the dispatcher's attribute: {channel: its subscribers}
    # What a subscriber knows of what it was sent: the id up to which it has all, and [(id, time)] of those beyond.
    received: Optional[Tuple[str, str]]
    nested: bool  # whether the loop makes keys of lists in lists
    wake: Optional[str]  # a subscriber's method; None: hand the channel to upstream's loop


# The first whose attribute the dispatcher has counts.
SERIES = (
    # 20: a channel has one topic, whose state only upstream's loop may change
    Series("_topic_by_channel", ("_last_fetched_id", "_history"), True, None),
    # 16 to 19: websockets
    Series("_channels_to_ws", ("_last_notif_sent_id", "_notif_history"), False, "trigger_notification_dispatching"),
    # 12 to 15: the events of long polls, which look at the table themselves
    Series("channels", None, False, "set"),
)


def find() -> Tuple[Any, Any, str]:
    """Return upstream's module of the dispatcher, its class and the name of the loop; the class is None if unknown."""
    with contextlib.suppress(ImportError):
        from odoo.addons.bus import bus_dispatcher  # 20

        return bus_dispatcher, getattr(bus_dispatcher, "BusDispatcher", None), "_listener_loop"
    from odoo.addons.bus.models import bus  # 12 to 19

    return bus, getattr(bus, "ImDispatch", None), "loop"


def patches() -> List[Tuple[Any, str, Any]]:
    """Return ``run`` and the loop of upstream's dispatcher, wrapped.

    :raises AttributeError: if this Odoo has no such dispatcher
    """
    module, upstream, loop = find()
    if upstream is None:
        raise AttributeError(f"no dispatcher in {module.__name__}")
    dispatch = getattr(module, "dispatch", None)
    if dispatch is None:
        dispatch = upstream()  # before 16 only those who serve long polls have one
    if series_of(dispatch) is None:
        raise AttributeError("table of subscribers in the bus dispatcher")
    stopping = getattr(module, "stop_event", None)  # from 15 on
    restarted = routing.restart(getattr(upstream, loop), "The loop of the bus", stopping)
    # Both are marked: another addon may override one of them.
    return [
        (upstream, "run", routing.mark(upstream.run, subscribers_of)),
        (upstream, loop, routing.mark(restarted, subscribers_of)),
    ]


def series_of(dispatch: Any) -> Optional[Series]:
    """Return what is known of a dispatcher, or None."""
    return next((series for series in SERIES if hasattr(dispatch, series.subscribers)), None)


def subscribers_of(dispatch: Any) -> "Optional[Subscribers]":
    """Return the dispatcher's subscribers; None if it is of no known kind, and stays as it is."""
    series = series_of(dispatch)
    return None if series is None else Subscribers(dispatch, series)


class Subscribers:
    """The subscribers of the bus in this process.

    :param dispatch: upstream's dispatcher
    :param series: its kind

    :ivar remembers: whether a subscriber knows what it has received
    """

    name = "bus"
    recovery = Recovery

    def __init__(self, dispatch: Any, series: Series) -> None:
        self._dispatch, self._series = dispatch, series
        self.remembers = series.received is not None

    def _by_channel(self) -> Dict[Hashable, Any]:
        return getattr(self._dispatch, self._series.subscribers)

    @staticmethod
    def notify_function() -> str:
        """Return the function that Odoo NOTIFYs with."""
        from odoo.addons.bus.models import bus  # in 20, too

        # In 15 and 16 it is None where the environment names none, and before there is none.
        return getattr(bus, "ODOO_NOTIFY_FUNCTION", None) or "pg_notify"

    def accept(self, channel: str, payload: str, report: Callable[[str, str], None]) -> bool:
        """Return whether upstream's loop should see a payload.

        A payload on ``imbus`` that names nobody here does not wake the loop: a server with a thousand databases
        notifies them all. One that would raise in the loop is reported: invalid JSON, a value that cannot be
        iterated, a channel that cannot be a key. What is not understood is passed on.
        """
        if channel != "imbus":
            return True  # another addon's
        try:
            channels = _loads()(payload)
            if not isinstance(channels, list):
                iter(channels)
                return True
            by_channel = self._by_channel()
            keys = [_key(each, self._series.nested) for each in channels]
            return any(key in by_channel or not _is_usual(key) for key in keys)
        except (ValueError, TypeError, RecursionError):
            report(channel, payload)
            return False

    def databases(self) -> List[str]:
        """Return the databases that have a subscriber here."""
        loaded, found = set(endpoints.loaded_databases()), set()
        for channel in list(self._by_channel()):
            database = channel[0] if isinstance(channel, tuple) and channel else None
            # From 16 on a channel begins with its database, which need not be loaded: Odoo unloads the one that
            # was used least recently. Before, a channel may be a bare name, and of any database.
            if isinstance(database, str) and (self.remembers or database in loaded):
                found.add(database)
            else:
                found |= loaded
        return sorted(found)

    def wakers(
        self, database: str, ids: Optional[Dict[str, List[int]]], deliver: Callable[[str, str], None]
    ) -> List[Callable[[], Any]]:
        """Return one wake-up callable for each subscriber that has not received all of these rows.

        :param ids: channel, as it stands in the table -> its rows; None: nobody knows which
        :param deliver: hands a notification to upstream's loop
        """
        by_channel = self._by_channel()
        rows: Dict[Hashable, List[int]] = {}
        if ids is None:
            rows = {channel: [] for channel in list(by_channel) if self._belongs(channel, database)}
        for text, numbers in (ids or {}).items():
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # else nobody can subscribe to it
                rows.setdefault(_key(json.loads(text), True), []).extend(numbers)
        found: Dict[Callable, None] = {}  # bound methods compare equal: each is woken once
        for channel, numbers in rows.items():
            for subscriber in _copy(by_channel.get(channel)):
                if self._lacks(subscriber, numbers):
                    wake = functools.partial(deliver, "imbus", json.dumps([channel]))
                    found[getattr(subscriber, self._series.wake) if self._series.wake else wake] = None
        return list(found)

    def _belongs(self, channel: Hashable, database: str) -> bool:
        return not self.remembers or not isinstance(channel, tuple) or channel[:1] == (database,)

    def _lacks(self, subscriber: Any, numbers: List[int]) -> bool:
        if self._series.received is None or not numbers:
            return True
        try:
            last, history = (getattr(subscriber, name) for name in self._series.received)
            received = {entry[0] for entry in history}
            return any(number > last and number not in received for number in numbers)
        except (AttributeError, TypeError):
            return True  # not as it was known: when in doubt, wake


def _copy(subscribers: Any) -> Iterable[Any]:
    """Return a channel's subscribers: a collection that other threads change meanwhile, or one topic."""
    if subscribers is None:
        return ()
    return list(subscribers) if isinstance(subscribers, (set, frozenset, list)) else (subscribers,)


def _key(channel: Any, nested: bool) -> Hashable:
    """Return a channel as upstream keeps it: a tuple for a list.

    :raises TypeError: if it can be no key
    """
    if isinstance(channel, list):
        channel = tuple(_key(each, True) for each in channel) if nested else tuple(channel)
    hash(channel)
    return channel


def _is_usual(key: Hashable) -> bool:
    """Return whether a channel is a name, or begins with one, as in all versions."""
    return isinstance(key[0] if isinstance(key, tuple) and key else key, str)


@functools.lru_cache(maxsize=None)
def _loads() -> Callable[[str], Any]:
    """Return the parser of upstream's loop: from 19 on orjson if that is installed, which is stricter than Python's."""
    with contextlib.suppress(ImportError):
        from odoo.addons.bus.tools import orjson

        return orjson.loads
    return json.loads
