# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The route ``GET /bus_alt_connection/health``: 200 while the bus of this process is listening, else 503.

With ``?scope=host`` also 503 while a cron listener of this server is missing, or the bus listener of a process that
was seen with one: PostgreSQL is asked.

The route is answered where Odoo's WSGI application is entered and is no controller. Odoo opens a cursor before it
calls a controller, whatever the controller's ``auth``, as soon as one database is configured or the session knows one:
with PostgreSQL away a controller would answer after that connection's timeout, with an error, just when the answer
matters.
"""

import functools
import importlib
import json
import urllib.parse
from typing import Any, Callable, Dict, List, Tuple

from .. import cron
from ..errors import UNVERIFIED
from ..listener import listeners
from ..state import LISTENING

PATH = "/bus_alt_connection/health"
UNANSWERED = "None if Odoo has just started; else: does its own db_host answer?"
STATUS_LINES = {"pass": "200 OK", "fail": "503 Service Unavailable"}


def _application() -> Any:
    """Return the class of the WSGI application: other middleware wraps the object."""
    for module, name in (("odoo.http", "Application"), ("odoo.http.router", "Application"), ("odoo.http", "Root")):
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise AttributeError("odoo.http has no WSGI application")


def patches() -> List[Tuple[Any, str, Any]]:
    """Return Odoo's WSGI application with the route."""
    application = _application()
    upstream = application.__call__

    @functools.wraps(upstream)
    def call(self: Any, environ: Dict[str, Any], start_response: Callable) -> Any:
        if environ.get("PATH_INFO") == PATH:
            return answer(environ, start_response)
        return upstream(self, environ, start_response)

    return [(application, "__call__", call)]


def health() -> Dict[str, str]:
    """Return whether the bus of this process is well. No address, no secret: anyone may ask."""
    states = [listener.state for listener in listeners() if listener.subscribers.name == "bus"]
    for state in states:
        if state.phase != LISTENING:
            # With a connection a problem of before is over, unless the problem is that nothing arrives on it.
            cause = state.problem.cause if state.problem else None
            if cause and (not state.endpoint or state.problem.endpoint is None or cause.name in UNVERIFIED):
                return _failing(state.phase, cause.name, cause.remedy)
            return _failing(state.phase, "unverified", UNANSWERED)
    return {"status": "pass", "state": LISTENING if states else "no listener here"}


def host_health() -> Dict[str, str]:
    """Return the same, and whether PostgreSQL has the listeners of this server's other processes."""
    from . import cluster

    found = health()
    if found["status"] == "fail":
        return found
    seen = cluster.watch().look()
    if seen is None:
        return _failing(found["state"], "unverified", UNANSWERED)
    if seen.lost:
        remedy = f"The bus of {seen.lost} other process(es) does not listen: what does the log say of the bus listener?"
        return _failing(found["state"], "bus listener", remedy)
    present, expected = seen.present["cron", "host"], cron.expected_listeners()
    if present < expected:
        remedy = (
            f"PostgreSQL has {present} of {expected} cron listeners. None if Odoo has just started; else: what does"
            " the log say of the cron listener?"
        )
        return _failing(found["state"], "cron listener", remedy)
    return found


def _failing(state: str, cause: str, remedy: str) -> Dict[str, str]:
    return {"status": "fail", "state": state, "cause": cause, "remedy": remedy}


def answer(environ: Dict[str, Any], start_response: Callable) -> List[bytes]:
    """Answer the route, as a WSGI application."""
    method = environ.get("REQUEST_METHOD")
    if method not in ("GET", "HEAD"):
        start_response("405 Method Not Allowed", [("Allow", "GET, HEAD"), ("Content-Length", "0")])
        return [b""]
    scope = urllib.parse.parse_qs(environ.get("QUERY_STRING", "")).get("scope")
    found = host_health() if scope == ["host"] else health()
    body = json.dumps(found).encode()
    headers = [("Content-Type", "application/json"), ("Cache-Control", "no-store"), ("Content-Length", str(len(body)))]
    start_response(STATUS_LINES[found["status"]], headers)
    return [b"" if method == "HEAD" else body]
