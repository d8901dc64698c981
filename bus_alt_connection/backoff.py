# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""How long to pause between attempts, and between equal log lines."""

import random
import time
from typing import Dict


class Backoff:
    """From the start of one attempt to the next: at once, then slower, with jitter.

    :param longest: seconds; a thousand listeners of one server spread their attempts over it
    """

    FIRST = 0.05  # seconds, after the attempt that is made at once
    # Beyond the longest pause: what fails only after that had succeeded, and the next attempt is
    # made at once.
    GOOD_SECONDS = 5.0
    SLOW_SECONDS = 5.0  # between attempts that cannot succeed before a person changes something

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self._attempts = 0
        self._latest = time.monotonic()

    def next(self, slow: bool = False) -> float:
        """The seconds to pause; `slow`: only a person can mend the failure."""
        before, self._latest = self._latest, time.monotonic()
        if self._latest - before > max(self.longest, self.SLOW_SECONDS) + self.GOOD_SECONDS:
            self._attempts = 0
        self._attempts += 1
        if slow:
            return random.uniform(self.SLOW_SECONDS * 0.8, self.SLOW_SECONDS)
        if self._attempts == 1:
            return 0.0
        ceiling = min(self.longest, self.FIRST * 2 ** min(self._attempts - 2, 16))
        return random.uniform(ceiling / 2, ceiling)


class Throttle:
    """Lets each kind of log line through once in a while.

    :cvar SECONDS: between two lines of a kind
    """

    SECONDS = 60

    def __init__(self) -> None:
        self._latest: Dict[str, float] = {}

    def due(self, kind: str) -> bool:
        """Whether a line of this kind may be logged now; if so, it counts as logged."""
        now = time.monotonic()
        if now - self._latest.get(kind, -self.SECONDS) < self.SECONDS:
            return False
        self._latest[kind] = now
        return True
