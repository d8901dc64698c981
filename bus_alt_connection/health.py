# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The route ``GET /bus_alt_connection/health``: 200 while the bus of this process is listening, or 503.

With ``?scope=host`` also 503 while a cron listener of this server is missing: PostgreSQL is asked.

It is answered where Odoo's WSGI application is entered and is no controller. Odoo opens a cursor
before it calls a controller, whatever the controller's ``auth``, as soon as one database is
configured or the session knows one: with PostgreSQL away a controller would answer after that
connection's timeout, with an error, and just then the answer matters.
"""

import functools
import json
import urllib.parse
from typing import Any, Callable, Dict, List, Optional, Tuple

import odoo.http

from . import cluster, cron
from .listener import listeners
from .state import LISTENING, UNVERIFIED

PATH = "/bus_alt_connection/health"
UNANSWERED = "None if Odoo has just started; else: does its own db_host answer?"
STATUS_LINES = {"pass": "200 OK", "fail": "503 Service Unavailable"}


def missing() -> Optional[str]:
    """What this Odoo lacks of what ``patches`` needs, or None."""
    return None if _application() else "odoo.http.Application or Root"


def _application() -> Any:
    # The class and not the object: it is what other middleware wraps, too. "Root" is before 16.
    return getattr(odoo.http, "Application", None) or getattr(odoo.http, "Root", None)


def patches() -> List[Tuple[Any, str, Any]]:
    """Odoo's WSGI application with the route."""
    application = _application()
    upstream = application.__call__

    @functools.wraps(upstream)
    def call(self: Any, environ: Dict[str, Any], start_response: Callable) -> Any:
        if environ.get("PATH_INFO") == PATH:
            return answer(environ, start_response)
        return upstream(self, environ, start_response)

    return [(application, "__call__", call)]


def health() -> Dict[str, str]:
    """Whether the bus of this process is well. No address, no secret: anyone may ask."""
    states = [listener.state for listener in listeners() if listener.subscribers.name == "bus"]
    for state in states:
        if state.phase != LISTENING:
            # With a connection a problem of before is over, unless it is that nothing arrives on it.
            cause = state.problem.cause if state.problem else None
            if cause and state.endpoint and cause.name not in UNVERIFIED:
                cause = None
            if cause:
                return _failing(state.phase, cause.name, cause.remedy)
            return _failing(state.phase, "unverified", UNANSWERED)
    return {"status": "pass", "state": LISTENING if states else "no listener here"}


def host_health() -> Dict[str, str]:
    """The same, and whether PostgreSQL has the cron listeners of this server."""
    found = health()
    if found["status"] == "fail":
        return found
    seen = cluster.watch().look()
    if seen is None:
        return _failing(found["state"], "unverified", UNANSWERED)
    present, expected = seen.present["cron", "host"], cron.expected()
    if present < expected:
        remedy = (
            f"PostgreSQL has {present} of {expected} cron listeners. None if Odoo has just started;"
            " else: what does the log say of the cron listener?"
        )
        return _failing(found["state"], "cron listener", remedy)
    return found


def _failing(state: str, cause: str, remedy: str) -> Dict[str, str]:
    return {"status": "fail", "state": state, "cause": cause, "remedy": remedy}


def answer(environ: Dict[str, Any], start_response: Callable) -> List[bytes]:
    """The route, as a WSGI application."""
    method = environ.get("REQUEST_METHOD")
    if method not in ("GET", "HEAD"):
        headers = [("Allow", "GET, HEAD"), ("Content-Length", "0")]
        start_response("405 Method Not Allowed", headers)
        return [b""]
    scope = urllib.parse.parse_qs(environ.get("QUERY_STRING", "")).get("scope")
    found = host_health() if scope == ["host"] else health()
    body = json.dumps(found).encode()
    headers = [
        ("Content-Type", "application/json"),
        ("Cache-Control", "no-store"),
        ("Content-Length", str(len(body))),
    ]
    start_response(STATUS_LINES[found["status"]], headers)
    return [b"" if method == "HEAD" else body]
