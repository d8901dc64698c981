# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The route ``GET /bus_alt_connection/health``: 200 while the bus of this process is well, or 503.

It is answered where Odoo's WSGI application is entered and is no controller. Odoo opens a cursor
before it calls a controller, whatever the controller's ``auth``, as soon as one database is
configured or the session knows one: with PostgreSQL away a controller would answer after that
connection's timeout, with an error, and just then the answer matters.
"""

import functools
import json

import odoo.http

from . import status

PATH = "/bus_alt_connection/health"
STATUS_LINES = {"pass": "200 OK", "fail": "503 Service Unavailable"}


def install():
    """Put the route in place.

    :return: str, what is missing, or None
    """
    # The class and not the object: it is what other middleware wraps, too. "Root" is before 16.
    application = getattr(odoo.http, "Application", None) or getattr(odoo.http, "Root", None)
    if application is None:
        return "odoo.http.Application or Root"
    upstream = application.__call__

    @functools.wraps(upstream)
    def call(self, environ, start_response):
        if environ.get("PATH_INFO") == PATH:
            return answer(environ, start_response)
        return upstream(self, environ, start_response)

    application.__call__ = call
    return None


def answer(environ, start_response):
    """The route, as a WSGI application."""
    method = environ.get("REQUEST_METHOD")
    if method not in ("GET", "HEAD"):
        headers = [("Allow", "GET, HEAD"), ("Content-Length", "0")]
        start_response("405 Method Not Allowed", headers)
        return [b""]
    health = status.health()
    body = json.dumps(health).encode()
    headers = [
        ("Content-Type", "application/json"),
        ("Cache-Control", "no-store"),
        ("Content-Length", str(len(body))),
    ]
    start_response(STATUS_LINES[health["status"]], headers)
    return [b"" if method == "HEAD" else body]
