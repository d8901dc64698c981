"""What a server says of its own bus, asked as an administrator asks: the health route and the log."""
import time

import requests

from ..process import wait_until

ROUTE = "/bus_alt_connection/health"
DEGRADED = 10.0     # seconds: two polls, so long a notification may take while nothing listens
INSTANT = 1.0       # seconds, while the bus listens; a machine that others use has its moments


def health(server):
    """What the process that serves websockets answers: (HTTP status, its JSON)."""
    answer = requests.get(server.evented_url + ROUTE, timeout=5)
    return answer.status_code, answer.json()


def wait_healthy(server, timeout=20):
    return wait_status(server, 200, timeout)


def wait_failing(server, timeout=20, cause=None):
    """Wait until it is not healthy, for this cause if there is one: what it says."""
    return wait_status(server, 503, timeout, cause)


def wait_status(server, wanted, timeout, cause=None):
    """Wait until the health route answers with this status, and names this cause: its JSON."""
    deadline = time.monotonic() + timeout
    while True:
        status, said = health(server)
        if status == wanted and cause in (None, said.get("cause")):
            return said
        assert time.monotonic() < deadline, f"after {timeout:.0f} s the health route says {status}: {said}"
        time.sleep(0.2)     # a few times a second: each is a line in Odoo's log


def lines(server, pattern, since=0):
    """The lines of the addon's own loggers that hold `pattern`, a plain text."""
    return [line for line in server.log_text(since).splitlines()
            if " odoo.addons.bus_alt_connection" in line and pattern in line]


def instant(flow, count=4):
    """What is sent from now on comes at once."""
    event = time.monotonic()
    flow.wait_received(count, since=event)
    assert flow.slowest(since=event) < INSTANT


def pass_seconds(seconds):
    """Let time pass: where nothing is to happen there is no event to wait for."""
    over = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > over, seconds + 60, "time stands still")
