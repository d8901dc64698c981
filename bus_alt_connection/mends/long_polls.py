# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Long polls, before 16: one that has received nothing yet looks at the table again in time.

Upstream shows such a poll what came in the last 50 s and waits as long. It never sees what came between its first
look and its wait, which may be 10 s apart.
"""

import functools
from typing import Any, List, Tuple

FIRST_POLL_SECONDS = 40  # shorter than the 50 s that upstream looks back


def patches(dispatcher: Any) -> List[Tuple[Any, str, Any]]:
    """Return ``poll``, shortened for the first one."""
    poll = dispatcher.poll

    @functools.wraps(poll)
    def shorten_first_poll(self: Any, dbname: str, channels: Any, last: Any, *args: Any, **kwargs: Any) -> Any:
        if not last and len(args) < 2:  # what follows are the options and the timeout
            kwargs.setdefault("timeout", FIRST_POLL_SECONDS)
        return poll(self, dbname, channels, last, *args, **kwargs)

    return [(dispatcher, "poll", shorten_first_poll)]
