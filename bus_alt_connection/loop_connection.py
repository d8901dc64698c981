# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What upstream's loop waits on: a stand-in for a psycopg2 connection, with a socket pair behind it.

Contract: fileno(), poll(), notifies and closed, as Odoo's loops use them. poll() raises only after close(): the loop
does not learn that the connection to PostgreSQL was lost. ``deliver`` may be called from any thread.
"""

import collections
import socket
from typing import Any, Callable, List

import psycopg2
from psycopg2 import extensions


class LoopConnection:
    """Hand notifications to one loop.

    :param on_close: called when the loop closes it
    """

    def __init__(self, on_close: Callable[[], None]) -> None:
        self.notifies: List[extensions.Notify] = []
        self.closed = 0
        self._on_close = on_close
        self._arrived: Any = collections.OrderedDict()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.signalled = False  # whether something waits that the loop has not taken yet

    def deliver(self, channel: str, payload: str) -> None:
        """Hand a notification to the loop and wake it. Equal ones that wait are one."""
        self._arrived[channel, payload] = None
        if self.signalled:
            return  # one byte is enough for all that arrives before the loop looks
        self.signalled = True
        try:
            self._writer.send(b".")
        except OSError:
            pass  # the loop has closed it

    def fileno(self) -> int:
        """Return the file descriptor that the loop selects on."""
        return self._reader.fileno()

    def poll(self) -> int:
        """Move what has arrived to ``notifies``.

        :raises psycopg2.InterfaceError: if it is closed, as a psycopg2 connection does
        """
        if self.closed:
            raise psycopg2.InterfaceError("connection already closed")
        try:
            self._reader.recv(64)
        except OSError:
            pass  # nothing was signalled
        # In this order: what arrives from here on is signalled anew.
        self.signalled = False
        while self._arrived:
            (channel, payload), _ = self._arrived.popitem(last=False)
            self.notifies.append(extensions.Notify(0, channel, payload))
        return extensions.POLL_OK

    def close(self) -> None:
        """Close it, as the loop does when it ends."""
        if not self.closed:
            self.closed = 1
            self._on_close()
            self._reader.close()
            self._writer.close()
