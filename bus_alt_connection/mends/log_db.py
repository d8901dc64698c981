# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""``log_db``: this addon's lines stay out of it.

Odoo's handler connects, blocking, for each line that it writes, and this addon writes lines just when a database is
away: with dropped packets a listener would wait for minutes before it tries again.
"""

import logging
from typing import Any, List, Tuple

ADDON = __name__.rsplit(".", 2)[0]


def patches() -> List[Tuple[Any, str, Any]]:
    """Filter what that handler gets."""
    for handler in logging.getLogger().handlers:
        if type(handler).__name__ == "PostgreSQLHandler":
            handler.addFilter(lambda record: not record.name.startswith(ADDON))
    return []
