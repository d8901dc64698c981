# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Stragglers, from 16 on: rows that commit after rows with higher ids have been sent.

A COMMIT that waits for a standby, or for a full disk, makes one. Upstream remembers what it sent for 10 s, and a row
that is later than that is lost for ever. Here a client (in 20 a channel) remembers for 90 s: as long as a look at the
table reaches back (``recovery.Recovery.STRAGGLER_SECONDS``), and the time between two looks. But what is remembered is
part of each query of the client, 1 µs for each row, so of more than ROWS only upstream's 10 s are kept.
"""

import contextlib
import functools
import time
from typing import Any, Callable, List, Tuple

SECONDS, ROWS = 90, 200  # a channel with 20 rows a second has as many in upstream's 10 s


def patches() -> List[Tuple[Any, str, Any]]:
    """Return the length of the history, and the method after which it is shortened."""
    from odoo.addons.bus import websocket

    owner, limit, method = websocket.Websocket, "MAX_NOTIFICATION_HISTORY_SEC", "_dispatch_bus_notifications"
    names, clock = ("_last_notif_sent_id", "_notif_history"), time.time
    with contextlib.suppress(ImportError):
        from odoo.addons.bus import bus_dispatcher  # 20: each channel has a history

        owner, limit, method = bus_dispatcher.ChannelTopic, "MAX_HISTORY_SEC", "_update_history"
        names, clock = ("_last_fetched_id", "_history"), time.monotonic
    shortened = _shorten(getattr(owner, method), names, getattr(owner, limit), clock)
    return [(owner, limit, SECONDS), (owner, method, shortened)]


def _shorten(update: Callable, names: Tuple[str, str], seconds: float, clock: Callable[[], float]) -> Callable:
    last, history = names

    @functools.wraps(update)
    def update_and_shorten(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = update(self, *args, **kwargs)
        kept, gone, until = getattr(self, history), 0, clock() - seconds
        while gone < len(kept) - ROWS and kept[gone][1] < until:
            gone += 1
        if gone:
            setattr(self, last, max(getattr(self, last), kept[gone - 1][0]))
            setattr(self, history, kept[gone:])
        return result

    return update_and_shorten
