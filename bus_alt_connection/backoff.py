# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""How long to wait between attempts. Nothing here knows what is attempted."""

import random
import time


class Backoff(object):
    """From the begin of one attempt to the next: at once, then slower, with jitter.

    :param float longest: seconds; a thousand listeners of one server are spread over this time
    """

    FIRST = 0.05  # seconds, after the attempt that is made at once
    GOOD_SECONDS = 5.0  # what lasted this long was a success: the next attempt is made at once

    def __init__(self, longest):
        self.longest = longest
        self._attempts = 0
        self._latest = time.monotonic()

    def next(self):
        """:return: seconds"""
        before, self._latest = self._latest, time.monotonic()
        if self._latest - before > self.longest + self.GOOD_SECONDS:
            self._attempts = 0
        self._attempts += 1
        if self._attempts == 1:
            return 0.0
        ceiling = min(self.longest, self.FIRST * 2 ** min(self._attempts - 2, 16))
        return random.uniform(ceiling / 2, ceiling)
