# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""Holes of upstream's own bus that lose notifications, mended where this Odoo has them.

Only the module that fits is imported: ``websockets`` from 16 on, ``long_polls`` before. What a version lacks of what a
mend needs is not patched: there the bus is as upstream has it.
"""

from typing import Any, List, Tuple

from ..dispatcher import find


def patches() -> List[Tuple[Any, str, Any]]:
    """Return the patches."""
    upstream = find()[1]
    if hasattr(upstream, "poll"):  # before 16 the dispatcher itself waits for each long poll
        from . import long_polls

        return long_polls.patches(upstream)
    from . import websockets

    return websockets.patches()
