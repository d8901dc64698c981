# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Websockets, from 16 on: one whose query fails ends, and its client connects again.

While the database is away upstream's loop (17 to 19) fails on the error itself: to log it, it queries the database.
The client's connection is closed then, but the websocket's sockets stay open and the dispatcher keeps it, for ever.
And a websocket that could not subscribe stays open and is sent nothing. Both end here.
"""

import contextlib
import functools
import json
import logging
from typing import Any, Callable, List, Tuple

import psycopg2
from psycopg2.pool import PoolError

from .. import errors

_logger = logging.getLogger(__name__)


def patches() -> List[Tuple[Any, str, Any]]:
    """Return upstream's serving loop, and how it serves a message, wrapped."""
    from odoo.addons.bus import websocket

    handler, request = websocket.WebsocketConnectionHandler, websocket.WebsocketRequest
    return [
        (handler, "_serve_forever", classmethod(_ending(handler._serve_forever.__func__))),
        (request, "serve_websocket_message", _subscribing(request.serve_websocket_message)),
    ]


def _ending(serve_forever: Callable) -> Callable:
    @functools.wraps(serve_forever)
    def ending_serve_forever(cls: Any, websocket: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return serve_forever(cls, websocket, *args, **kwargs)
        except Exception:
            # At its end it queries the database, which fails as well.
            with contextlib.suppress(Exception):
                if websocket.state.name != "CLOSED":
                    websocket._terminate()
            raise

    return ending_serve_forever


def _subscribing(serve_message: Callable) -> Callable:
    @functools.wraps(serve_message)
    def subscribing_serve_message(self: Any, message: Any) -> Any:
        try:
            return serve_message(self, message)
        except Exception as exc:
            cause = exc.__cause__ or exc  # upstream wraps some of them
            failed = isinstance(cause, (psycopg2.OperationalError, psycopg2.InterfaceError))
            if not failed or not _subscribes(message):
                raise
            _logger.info(
                "A websocket could not subscribe (%s); its client is told to connect again.",
                errors.one_line(cause),
            )
            # Upstream closes the websocket on this one, with the code "try later".
            raise PoolError(errors.one_line(cause)) from exc

    return subscribing_serve_message


def _subscribes(message: Any) -> bool:
    try:
        return json.loads(message)["event_name"] == "subscribe"
    except (KeyError, TypeError, ValueError):  # another addon's own
        return False
