# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What the listeners of this process are doing now, for the health route and the metrics.

Nothing is counted here: what is asked for is read from the listeners at that moment.
"""

import threading
import weakref

_listeners = weakref.WeakSet()
_lock = threading.Lock()  # a set may not grow while it is read


def add(listener):
    """Remember a ``listener.Listener`` as long as it lives."""
    with _lock:
        _listeners.add(listener)


def listeners():
    """:return: list of the ``listener.Listener`` that are in use"""
    with _lock:
        return [listener for listener in _listeners if not listener.stopping]


def listening(listener):
    """Whether notifications are known to arrive: it is connected, and one did."""
    session = listener.session  # read once: another thread replaces it
    return session is not None and session.proven


def health():
    """Whether the bus of this process is well.

    :return: dict, in it "status": "pass" or "fail". No address, no secret: anyone may ask.
    """
    bus = [listener for listener in listeners() if listener.owner.name == "bus"]
    for listener in bus:
        if not listening(listener):
            return {
                "status": "fail",
                "cause": listener.trouble.cause or "unproven",
                "remedy": listener.trouble.remedy
                or "None if Odoo has just started; else: does its own db_host answer?",
            }
    return {"status": "pass"} if bus else {"status": "pass", "output": "no listener here"}
