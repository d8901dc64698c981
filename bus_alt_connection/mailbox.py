# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What upstream's loop waits on, instead of a connection.

It has of a psycopg2 connection what the loops of all series use, and never fails while it is open:
the loop does not learn that a connection was lost.
"""

import collections
import socket

import psycopg2
from psycopg2 import extensions


class Mailbox(object):
    """``deliver`` and ``wake`` may be called from any thread; the rest belongs to the loop.

    :param on_close: called without arguments when the loop closes it
    """

    def __init__(self, on_close):
        self.notifies = []  # psycopg2 Notify, as on a psycopg2 connection
        self.closed = 0
        self._on_close = on_close
        self._arrived = collections.deque()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._signalled = False

    def deliver(self, notification):
        """Hand a psycopg2 ``Notify`` to the loop and wake it."""
        self._arrived.append(notification)
        self.wake()

    def wake(self):
        """Make the loop go round once."""
        if self._signalled:
            return  # one byte is enough for all that arrives before the loop looks
        self._signalled = True
        try:
            self._writer.send(b".")
        except OSError:
            pass  # the loop has closed the mailbox, or has bytes enough to read

    def fileno(self):
        return self._reader.fileno()

    def poll(self):
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
            self.notifies.append(self._arrived.popleft())
        return extensions.POLL_OK

    def close(self):
        if not self.closed:
            self.closed = 1
            self._on_close()
            self._reader.close()
            self._writer.close()
