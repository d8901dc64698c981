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

# One query: the rows, and with them what the server knows of open transactions.
# txid_current_snapshot takes no transaction id, and exists in every PostgreSQL that Odoo runs on.
QUERY = """
SELECT id, channel::text, {recent},
       txid_snapshot_xmin(txid_current_snapshot()), txid_snapshot_xmax(txid_current_snapshot())
FROM {table} WHERE id >= {floor} ORDER BY id DESC LIMIT {limit}
"""
# Of the first look: a row that was made before it goes back is not returned.
RECENT = "coalesce(create_date > timezone('UTC', now()) - %s * interval '1 second', true)"
# Lower ids than the highest may be those of open transactions.
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
        self.highest = 0  # id that a look has found
        self._seen: Dict[int, None] = {}  # ids above the floor that were returned
        self._marks: Any = collections.deque()  # (highest id, xmax, time), oldest first

    def query(self, seconds: float) -> Tuple[str, tuple]:
        """The statement of the next look, and its parameters.

        :param seconds: how far the first look goes back; what is older was seen by definition
        """
        if self._floor is None:
            floor = FLOOR.format(table=self._table, limit=self.LIMIT // 2)
            recent, parameters = RECENT, (seconds,)  # type: Tuple[str, tuple]
        else:
            floor, recent, parameters = str(self._floor), "true", ()
        limit = self.LIMIT + 2  # one for the floor, and one to see that there are too many
        sql = QUERY.format(table=self._table, floor=floor, recent=recent, limit=limit)
        return sql, parameters

    def update(self, result: List[tuple], known: int) -> Optional[List[Row]]:
        """Take the result of a look. Of two that overlap either may come first.

        :param known: ``highest`` when it was asked
        :return: the rows that are new, by id; None if nobody knows which are
        """
        now = time.monotonic()
        first = self._floor is None
        highest = result[0][0] if result else 0
        floor = max(0, highest - self.LIMIT // 2) if first else self._floor
        rows = [row for row in result if row[0] > floor]
        complete = len(rows) <= self.LIMIT
        if complete and known and all(row[0] != known for row in result):
            # Another table of this name, or an emptied one: the server lost rows in a failover, the
            # database was restored, or Odoo deleted what was old. The next look starts anew.
            self.__init__(self._table)  # type: ignore
            return None
        self._floor, self.highest = floor, max(highest, self.highest)
        new = sorted((row[:3] for row in rows if row[0] not in self._seen), key=lambda row: row[0])
        self._seen.update((row[0], None) for row in new)
        if result:
            xmin, xmax = result[0][3:]
            self._marks.append((highest, xmax, now))
            self._settle(xmin, now)
        fresh = [(number, channel) for number, channel, recent in new if recent or not first]
        return fresh if complete else None

    def _settle(self, xmin: int, now: float) -> None:
        """Raise the floor to the latest mark that no open transaction is older than."""
        floor = self._floor or 0
        while self._marks:
            highest, xmax, at = self._marks[0]
            ended = xmin >= xmax and now - at > self.OVERLAP_SECONDS
            if not ended and now - at < self.LONGEST_SECONDS:
                break
            floor = max(floor, highest)
            self._marks.popleft()
        if len(self._seen) > self.LIMIT // 2:
            floor = max(floor, sorted(self._seen)[-self.LIMIT // 2])
        if floor != self._floor:
            self._floor = floor
            self._seen = {number: None for number in self._seen if number > floor}
