# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The bus: upstream's dispatcher, its subscribers, how they are woken.

Upstream's dispatcher keeps its class, its object, its loop and its thread. Its methods are wrapped:
``run`` and the loop, so that its thread is known as a listener's, also if another addon overrides
one of them; the loop, so that an error in it costs a moment and not the 20 to 50 s that upstream
sleeps; and before series 16 ``poll``, so that it looks at the table again before what came between
its first look and its wait is too old to be shown. All that differs between series stands in
``SERIES`` and ``find``.
"""

import contextlib
import functools
import json
import logging
import time
from typing import Any, Callable, Dict, Hashable, Iterator, List, NamedTuple, Optional, Tuple

import odoo.service.server

from . import endpoints, payloads, routing
from .backoff import Backoff

_logger = logging.getLogger(__name__)

# How long a long poll waits that has received nothing yet. Upstream shows it what came in the last
# 50 s and waits as long, so it never sees what came between its first look and its wait: these may
# be 10 s apart.
FIRST_POLL_SECONDS = 40


class Series(NamedTuple):
    subscribers: str  # the dispatcher's attribute: {channel: its subscribers}
    # What a subscriber of 16 and later knows of what it was sent: the id up to which it has all, and
    # [(id, time)] of those beyond. A long poll of before looks itself every 50 s.
    received: Optional[Tuple[str, str]]
    nested: bool  # whether the loop makes keys of lists in lists
    wake: Optional[str]  # a subscriber's method; None: tell upstream's loop


# The first whose attribute exists counts.
SERIES = (
    # After 19 a channel has one topic. Only upstream's loop may change a topic's state.
    Series("_topic_by_channel", ("_last_fetched_id", "_history"), True, None),
    # 16 to 19: websockets
    Series(
        "_channels_to_ws",
        ("_last_notif_sent_id", "_notif_history"),
        False,
        "trigger_notification_dispatching",
    ),
    # 12 to 15: the events of long polls
    Series("channels", None, False, "set"),
)


def find() -> Tuple[Any, str]:
    """Upstream's module of the dispatcher, or None, and the name of the loop."""
    with contextlib.suppress(ImportError):
        from odoo.addons.bus import bus_dispatcher  # after 19

        return bus_dispatcher, "_listener_loop"
    with contextlib.suppress(ImportError):
        from odoo.addons.bus.models import bus  # 12 to 19

        return bus, "loop"
    return None, ""


def missing() -> Optional[str]:
    """What this Odoo lacks of what ``patches`` needs, or None."""
    module, loop = find()
    upstream = _dispatcher_class(module)
    if upstream is None:
        return "dispatcher of the bus (bus.models.bus.ImDispatch)"
    for name in ("run", loop):
        if not hasattr(upstream, name):
            return f"bus dispatcher {upstream.__name__}.{name}"
    dispatch = getattr(module, "dispatch", None)
    if dispatch is None:
        dispatch = upstream()  # before 16 only those who serve long polls have one
    if series_of(dispatch) is None:
        return "table of subscribers in the bus dispatcher"
    return None


def patches() -> List[Tuple[Any, str, Any]]:
    """``run``, the loop and, where there is one, ``poll`` of upstream's dispatcher, wrapped."""
    module, loop = find()
    upstream = _dispatcher_class(module)
    run = upstream.run
    if hasattr(upstream, "wakeup_workers") and odoo.service.server.server is None:
        run = _ended_with_the_server(run)
    marked = routing.listener_of(subscribers_of)
    found = [
        (upstream, "run", marked(run)),
        (upstream, loop, marked(_repeated(getattr(upstream, loop)))),
    ]
    if hasattr(upstream, "poll"):  # before 16 the dispatcher itself waits for each long poll
        found.append((upstream, "poll", _ended_in_time(upstream.poll)))
    return found


def _dispatcher_class(module: Any) -> Any:
    return getattr(module, "BusDispatcher", None) or getattr(module, "ImDispatch", None)


def series_of(dispatch: Any) -> Optional[Series]:
    for series in SERIES:
        if hasattr(dispatch, series.subscribers):
            return series
    return None


def subscribers_of(dispatch: Any) -> "Optional[Subscribers]":
    """The dispatcher's subscribers; None if it is of no known kind, and stays as it is."""
    series = series_of(dispatch)
    return None if series is None else Subscribers(dispatch, series)


def _ended_with_the_server(run: Callable) -> Callable:
    """Series 15 has the server end its loop if there is a server when ``bus`` is imported.

    Where ``bus`` is loaded server-wide, as this addon has it, the server is only made afterwards.
    """

    @functools.wraps(run)
    def run_until_the_server_stops(self: Any, *args: Any, **kwargs: Any) -> Any:
        server = odoo.service.server.server
        if server is not None:
            server.on_stop(find()[0].stop_event.set)
            server.on_stop(self.wakeup_workers)
        return run(self, *args, **kwargs)

    return run_until_the_server_stops


def _ended_in_time(poll: Callable) -> Callable:
    """A poll ends while upstream still shows the rows that came after its first look."""

    @functools.wraps(poll)
    def poll_that_looks_again(
        self: Any, dbname: str, channels: Any, last: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if not last and len(args) < 2:  # what follows are the options and the timeout
            kwargs.setdefault("timeout", FIRST_POLL_SECONDS)
        return poll(self, dbname, channels, last, *args, **kwargs)

    return poll_that_looks_again


def _repeated(loop: Callable) -> Callable:
    @functools.wraps(loop)
    def repeated_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        backoff = Backoff(longest=5.0)
        while True:
            try:
                return loop(self, *args, **kwargs)
            except Exception:  # any: upstream would sleep for 20 to 50 s, see above
                stopping = getattr(find()[0], "stop_event", None)  # series from 15 on have one
                if stopping is not None and stopping.is_set():
                    raise
                _logger.warning("The loop of the bus failed and goes on.", exc_info=True)
            time.sleep(backoff.next())

    return repeated_loop


class Subscribers:
    """The subscribers of the bus in this process.

    :param dispatch: upstream's dispatcher
    :param series: its kind
    """

    name = "bus"
    table = "bus_bus"

    def __init__(self, dispatch: Any, series: Series) -> None:
        self._dispatch, self._series = dispatch, series

    def _by_channel(self) -> Dict[Hashable, Any]:
        return getattr(self._dispatch, self._series.subscribers)

    @staticmethod
    def notify_function() -> str:
        """The function that Odoo NOTIFYs with."""
        # In 15 and 16 it is None where the environment names none, and before there is none.
        return getattr(find()[0], "ODOO_NOTIFY_FUNCTION", None) or "pg_notify"

    def accept(self, arrived: List[str]) -> payloads.Accepted:
        """What upstream's loop is to see of these payloads, and which channels they name."""
        return payloads.accept(arrived, self._by_channel(), self._series.nested)

    def databases(self) -> List[str]:
        """The databases that have a subscriber here."""
        loaded, found = set(endpoints.loaded_databases()), set()
        for channel in list(self._by_channel()):
            database = channel[0] if isinstance(channel, tuple) and channel else None
            # From 16 on a channel begins with its database. It need not be loaded: Odoo puts out
            # the one that was used least recently when they are too many for its memory.
            if database in loaded or (self._series.received and isinstance(database, str)):
                found.add(database)
            else:
                # A channel may be a bare name (before 16), and then of any database.
                found |= loaded
        return sorted(found)

    def lacking(
        self,
        database: str,
        rows: Optional[List[Tuple[int, Optional[Hashable], float]]],
        at_once: bool,
        deliver: Callable[[str, str], None],
    ) -> List[Callable[[], Any]]:
        """Who lacks one of these rows: functions that wake one subscriber each.

        :param rows: (id, channel's key, …); None: nobody knows which, so everyone is woken
        :param at_once: also those of whom it is not known
        :param deliver: hands a notification to upstream's loop
        """
        by_channel, ids = self._by_channel(), {}  # type: Any
        if rows is None:
            ids = dict.fromkeys(list(by_channel))
        for number, channel, *_ in rows or ():
            if channel is not None:
                ids.setdefault(channel, []).append(number)
        wakers: Dict[Callable, None] = {}  # bound methods compare equal: each is woken once
        for channel, numbers in ids.items():
            for subscriber in _copy(by_channel.get(channel)):
                if self._lacks(subscriber, numbers, at_once):
                    wakers[self._waker(channel, subscriber, deliver)] = None
        return list(wakers)

    def _lacks(self, subscriber: Any, numbers: Optional[List[int]], at_once: bool) -> bool:
        if numbers is None:
            return True
        if self._series.received is None:
            return at_once
        try:
            last, history = (getattr(subscriber, name) for name in self._series.received)
            received = {entry[0] for entry in history}
            return any(number > last and number not in received for number in numbers)
        except (AttributeError, TypeError):
            return True  # not as it was known: when in doubt, wake

    def _waker(
        self, channel: Hashable, subscriber: Any, deliver: Callable[[str, str], None]
    ) -> Callable[[], Any]:
        if self._series.wake is None:
            return functools.partial(deliver, "imbus", json.dumps([channel]))
        return getattr(subscriber, self._series.wake)

    @staticmethod
    def wakeups() -> List[str]:
        return []


def _copy(subscribers: Any) -> Iterator[Any]:
    """A channel's subscribers: a collection that other threads change meanwhile, or one topic."""
    if subscribers is None:
        return iter(())
    if not isinstance(subscribers, (set, frozenset, list)):
        return iter((subscribers,))
    return iter(list(subscribers))
