# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Long polls, before 16: one that has received nothing yet looks at the table again in time; 15 stops in time.

Upstream shows such a poll what came in the last 50 s and waits as long. It never sees what came between its first
look and its wait, which may be 10 s apart.

15 has the server end the dispatcher's loop if there is a server when ``bus`` is imported. Where ``bus`` is loaded
server-wide, as by this addon, the server is only made afterwards.
"""

import functools
from typing import Any, List, Tuple

import odoo.service.server

from ..dispatcher import find

FIRST_POLL_SECONDS = 40  # shorter than the 50 s that upstream looks back


def patches() -> List[Tuple[Any, str, Any]]:
    """Return ``poll``, shortened for the first one, and in 15 ``run``, which ends with the server."""
    module, dispatcher, _loop = find()
    poll, run = dispatcher.poll, dispatcher.run

    @functools.wraps(poll)
    def shorten_first_poll(self: Any, dbname: str, channels: Any, last: Any, *args: Any, **kwargs: Any) -> Any:
        if not last and len(args) < 2:  # what follows are the options and the timeout
            kwargs.setdefault("timeout", FIRST_POLL_SECONDS)
        return poll(self, dbname, channels, last, *args, **kwargs)

    @functools.wraps(run)
    def stop_with_server(self: Any, *args: Any, **kwargs: Any) -> Any:
        server = odoo.service.server.server
        if server is not None:
            server.on_stop(module.stop_event.set)
            server.on_stop(self.wakeup_workers)
        return run(self, *args, **kwargs)

    found = [(dispatcher, "poll", shorten_first_poll)]
    if hasattr(dispatcher, "wakeup_workers") and odoo.service.server.server is None:
        found.append((dispatcher, "run", stop_with_server))
    return found
