"""Rows of which nobody is notified: clients in several databases, and senders that commit and say nothing.

Contract: only who looks at the table finds such a row, so that it arrives shows that the table is looked at.
"""
import contextlib
import time

from .client import Sender, Session

FOUND = 60      # seconds within which such a row arrives, whatever the state


@contextlib.contextmanager
def clients(stack, server, *databases):
    """A client and a sender in each database: {database: (client, sender)}. The senders go straight to PostgreSQL."""
    with contextlib.ExitStack() as opened:
        found = {}
        for name in databases:
            session = Session(server, name)
            sender = Sender(session, stack.postgres, f"unnotified-{time.monotonic_ns()}")
            last = sender.insert("seen before")
            client = opened.enter_context(session.subscribe([sender.channel], last=last))
            found[name] = client.wait_subscribed(), sender
            opened.callback(sender.close)
        yield found


def gets(client, payload, timeout=FOUND):
    """Wait until the client has received this, and nothing before it."""
    notification = client.next(timeout=timeout)
    assert notification, f"{payload!r} did not come within {timeout} s"
    assert notification.payload == payload
