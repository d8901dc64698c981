# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Time, pauses, randomness, threads and locks: the core takes all of them from here.

Contract: the names are looked up in this module at each use (``runtime.sleep(1)``), so that a simulation can
replace them. In Odoo's evented process gevent has replaced what stands behind them: a thread is a greenlet.
"""

import random
import threading
import time
from typing import Any, Callable, Dict

monotonic = time.monotonic
wall_clock = time.time
sleep = time.sleep
uniform = random.uniform
Lock = threading.Lock
Event = threading.Event


def token() -> str:
    """Return 16 random hexadecimal digits."""
    return f"{random.getrandbits(64):016x}"


def start_thread(target: Callable[[], None], name: str) -> None:
    """Start a daemon thread.

    :raises RuntimeError: if the system gives none
    """
    threading.Thread(target=target, name=f"bus_alt_connection.{name}", daemon=True).start()


class Backoff:
    """Compute the pauses between attempts: none, then longer ones with jitter, after a while long ones.

    Which error an attempt met is not asked: errors of a connect have no code, only words in the server's language.

    :param quick_seconds: how long attempts are quick; a restart or a failover is over by then
    """

    FIRST, LONGEST = 0.05, 0.6  # seconds; a thousand listeners of one server spread their attempts over the longest
    SLOW = (4.0, 5.0)  # seconds; what lasts so long needs a person

    def __init__(self, quick_seconds: float = 60.0) -> None:
        self._attempts = 0
        self._quick_until = monotonic() + quick_seconds

    def next(self) -> float:
        """Return the seconds to pause before the next attempt."""
        if monotonic() > self._quick_until:
            return uniform(*self.SLOW)
        self._attempts += 1
        ceiling = min(self.LONGEST, self.FIRST * 2 ** min(self._attempts - 2, 16))
        return uniform(ceiling / 2, ceiling) if self._attempts > 1 else 0.0


class Throttle:
    """Let one log line of each kind through in a minute."""

    SECONDS = 60.0

    def __init__(self) -> None:
        self._latest: Dict[Any, float] = {}

    def due(self, kind: Any) -> bool:
        """Return whether a line of this kind may be logged now; if so, it counts as logged."""
        now = monotonic()
        if now - self._latest.get(kind, -self.SECONDS) < self.SECONDS:
            return False
        self._latest[kind] = now
        return True
