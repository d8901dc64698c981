# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What upstream's loop waits on, instead of a psycopg2 connection.

It has what the loops of all series use of one, and never fails while it is open: the loop does not
learn that the connection to PostgreSQL was lost. Behind it is a socket pair.
"""

import collections
import socket
from typing import Callable, List

import psycopg2
from psycopg2 import extensions


class LoopConnection:
    """``deliver`` may be called from any thread; the rest belongs to the loop.

    :param on_close: called when the loop closes it
    """

    def __init__(self, on_close: Callable[[], None]) -> None:
        self.notifies: List[extensions.Notify] = []
        self.closed = 0
        self._on_close = on_close
        self._arrived: collections.OrderedDict = collections.OrderedDict()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._signalled = False

    @property
    def waiting(self) -> bool:
        """Whether something waits that the loop has not taken yet."""
        return self._signalled

    def deliver(self, channel: str, payload: str) -> None:
        """Hand a notification to the loop and wake it. Equal ones that wait are one."""
        self._arrived[channel, payload] = None
        if self._signalled:
            return  # one byte is enough for all that arrives before the loop looks
        self._signalled = True
        try:
            self._writer.send(b".")
        except OSError:
            pass  # the loop has closed it, or has bytes enough to read

    def fileno(self) -> int:
        return self._reader.fileno()

    def poll(self) -> int:
        """Move what has arrived to ``notifies``.

        :raises psycopg2.InterfaceError: if it is closed, as a psycopg2 connection does
        """
        if self.closed:
            raise psycopg2.InterfaceError("connection already closed")
        try:
            while len(self._reader.recv(64)) == 64:
                pass
        except OSError:
            pass  # drained
        # In this order: what arrives from here on is signalled anew.
        self._signalled = False
        while self._arrived:
            (channel, payload), _ = self._arrived.popitem(last=False)
            self.notifies.append(extensions.Notify(0, channel, payload))
        return extensions.POLL_OK

    def close(self) -> None:
        if self.closed:
            return
        self.closed = 1
        self._on_close()
        self._reader.close()
        self._writer.close()
