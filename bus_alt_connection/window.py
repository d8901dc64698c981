# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The rows of ``bus_bus`` that were not seen yet.

Contract: each row is returned once, after its transaction has committed, in whatever order ids and
commits come. An id is given when the row is made and seen when its transaction commits; so a lower
one may appear after a higher one. All ids up to the highest are settled once every transaction
that was open when that one was seen has ended, which the server's snapshot tells.
"""

import collections
import time
from typing import Any, Dict, List, Optional, Tuple

Row = Tuple[int, Optional[str]]  # id, channel as it stands in the table: JSON text, or anything

# One query: what the server knows of open transactions, then the rows. txid_current_snapshot takes
# no transaction id, and exists in every PostgreSQL that Odoo runs on.
QUERY = """
SELECT 0, NULL::text, NULL::boolean, txid_snapshot_xmin(txid_current_snapshot()),
       txid_snapshot_xmax(txid_current_snapshot()), (SELECT coalesce(max(id), 0) FROM {table})
UNION ALL
(SELECT id, channel::text,
        coalesce(create_date > timezone('UTC', now()) - %s * interval '1 second', true),
        NULL, NULL, NULL
 FROM {table} WHERE id > {floor} ORDER BY id DESC LIMIT {limit})
"""
# Of the first look; lower ids may be those of open transactions.
FLOOR = "(SELECT coalesce(max(id), 0) - {limit} FROM {table})"


class Window:
    """The window of rows of one table in one database.

    :param table: its name
    """

    # Rows that one look reads; more than that are not told apart. Half of them may be unsettled: a
    # lower id that commits after as many higher ones is left to its NOTIFY.
    LIMIT = 10000
    OVERLAP_SECONDS = 10  # at least: an id is given a moment before its transaction has a number
    LONGEST_SECONDS = 600  # a transaction that lasts longer is not waited for

    def __init__(self, table: str) -> None:
        self._table = table
        self._floor: Optional[int] = None  # all ids up to it are settled
        self._seen: Dict[int, None] = {}  # ids above the floor that were returned
        self._marks: Any = collections.deque()  # (highest id, xmax, time), oldest first

    def query(self, seconds: float) -> Tuple[str, tuple]:
        """The statement of the next look, and its parameters.

        :param seconds: how far the first look goes back; what is older was seen by definition
        """
        first = FLOOR.format(table=self._table, limit=self.LIMIT // 2)
        floor = first if self._floor is None else str(self._floor)
        return QUERY.format(table=self._table, floor=floor, limit=self.LIMIT + 1), (seconds,)

    def update(self, result: List[tuple]) -> Optional[List[Row]]:
        """Take the result of a look.

        :return: the rows that are new, by id; None if they are too many to be told apart
        """
        (_, _, _, xmin, xmax, highest), rows = result[0], result[1:]
        now = time.monotonic()
        if self._floor is not None and highest < self._floor:
            # Another table of this name: the server lost rows in a failover, or the database was
            # restored. The next look starts anew.
            self.__init__(self._table)  # type: ignore
            return None
        first = self._floor is None
        new = sorted((row[:3] for row in rows if row[0] not in self._seen), key=lambda row: row[0])
        fresh = [(number, channel) for number, channel, recent in new if recent or not first]
        self._seen.update((row[0], None) for row in new)
        self._marks.append((highest, xmax, now))
        if first:
            self._floor = highest - self.LIMIT // 2
        self._settle(xmin, now)
        return fresh if len(rows) <= self.LIMIT else None

    def _settle(self, xmin: int, now: float) -> None:
        """Raise the floor to the latest mark that no open transaction is older than."""
        floor = self._floor
        while self._marks:
            highest, xmax, at = self._marks[0]
            ended = xmin >= xmax and now - at > self.OVERLAP_SECONDS
            if not ended and now - at < self.LONGEST_SECONDS:
                break
            floor = max(floor or 0, highest)
            self._marks.popleft()
        if len(self._seen) > self.LIMIT // 2:
            floor = max(floor or 0, sorted(self._seen)[-self.LIMIT // 2])
        if floor != self._floor:
            self._floor = floor
            self._seen = {number: None for number in self._seen if number > (floor or 0)}
