# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""What ``tasks`` waits with in the evented process: a selector on gevent's hub itself.

The one that gevent puts in the place of ``selectors.DefaultSelector`` goes through an event, a
timeout and two more turns of the hub for each wait. With a thousand foreign notifications a second
that was half of their cost.
"""

import selectors
from typing import Any, Dict, List, Tuple

import gevent


class HubSelector:
    """The part of a selector that ``tasks`` uses. One greenlet uses it."""

    def __init__(self) -> None:
        self._keys: Dict[int, selectors.SelectorKey] = {}
        self._watchers: Dict[int, Any] = {}
        self._ready: Dict[int, int] = {}  # file descriptor -> event, until the next select
        self._waiting: Any = None  # the greenlet, while it waits

    def register(self, fileno: int, event: int, data: Any = None) -> None:
        if fileno in self._keys:
            raise KeyError(f"{fileno} is already registered")
        self._keys[fileno] = selectors.SelectorKey(fileno, fileno, event, data)
        # READ and WRITE are 1 and 2 for both.
        self._watchers[fileno] = gevent.get_hub().loop.io(fileno, event)

    def unregister(self, fileno: int) -> None:
        del self._keys[fileno]
        watcher = self._watchers.pop(fileno)
        watcher.stop()
        watcher.close()
        self._ready.pop(fileno, None)

    def select(self, timeout: float) -> List[Tuple[selectors.SelectorKey, int]]:
        for fileno, watcher in self._watchers.items():
            if not watcher.active:
                watcher.start(self._fired, fileno)
        if not self._ready:
            self._wait(timeout)
        ready, self._ready = self._ready, {}
        return [(self._keys[fileno], event) for fileno, event in ready.items()]

    def _wait(self, timeout: float) -> None:
        hub = gevent.get_hub()
        with hub.loop.timer(timeout) as timer:
            hub.loop.update_now()
            timer.start(self._resume)
            self._waiting = gevent.getcurrent()
            try:
                hub.switch()
            finally:
                self._waiting = None

    # -- what the hub calls -------------------------------------------------------------------

    def _fired(self, fileno: int) -> None:
        # Until the next select: what nobody reads meanwhile must not keep the hub busy.
        self._watchers[fileno].stop()
        self._ready[fileno] = self._keys[fileno].events
        self._resume()

    def _resume(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.switch()

    def close(self) -> None:
        for fileno in list(self._keys):
            self.unregister(fileno)
