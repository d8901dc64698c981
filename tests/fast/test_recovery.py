"""The rows of `bus_bus` that were not seen yet: each is returned once, after its transaction has committed.

A stand-in for the table and for the server's transactions answers the window's query, as PostgreSQL would at that
moment; that the query itself is right SQL is seen on a real server, wherever a row is found by a look.
"""
import itertools
import pickle

import pytest
from bus_alt_connection.window import Window

from bus_alt_connection import window


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that stands until it is set: `clock.now += 5`."""
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now
    monkeypatch.setattr(window, "time", Clock())
    return window.time


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Limits that a test reaches with few rows."""
    monkeypatch.setattr(Window, "LIMIT", 20)


class Transaction:
    def __init__(self, table):
        self.table, self.rows = table, []
        self.number = next(table.numbers)

    def insert(self, age=0.0):
        """A row, with an id that it has at once and a time like that of `now()`: its id."""
        self.rows.append((next(self.table.ids), self.table.clock.now - age))
        return self.rows[-1][0]

    def commit(self):
        self.table.rows += self.rows
        self.table.open.remove(self)


class Table:
    """`bus_bus`: what a look finds in it."""

    def __init__(self, clock):
        self.clock = clock
        self.ids, self.numbers = itertools.count(1), itertools.count(100)
        self.rows, self.open = [], []
        self.window = Window("bus_bus")

    def begin(self):
        self.open.append(Transaction(self))
        return self.open[-1]

    def insert(self, age=0.0):
        transaction = self.begin()
        number = transaction.insert(age)
        transaction.commit()
        return number

    def answer(self, seconds=60.0):
        """What PostgreSQL answers to the window's query: the snapshot, then the rows."""
        sql, parameters = self.window.query(seconds)
        first = "id >= (SELECT" in sql
        assert parameters == ((seconds,) if first else ())
        floor = max((number for number, _ in self.rows), default=0) - Window.LIMIT // 2 if first else self.floor
        limit = int(sql.split("LIMIT ")[1])
        assert limit == Window.LIMIT + 2
        xmax = next(self.numbers)       # a number is lost with each look, which changes nothing
        xmin = min((transaction.number for transaction in self.open), default=xmax)
        rows = sorted((row for row in self.rows if row[0] >= floor), reverse=True)[:limit]
        return [(number, f'["demo",{number}]', not first or at > self.clock.now - seconds, xmin, xmax)
                for number, at in rows]

    def look(self, seconds=60.0):
        """The ids that a look returns, or None."""
        return self.take(self.window.highest, self.answer(seconds))

    def take(self, known, answer):
        """What the window makes of an answer."""
        found = self.window.update(answer, known)
        assert found is None or all(channel == f'["demo",{number}]' for number, channel in found)
        return None if found is None else [number for number, _ in found]

    @property
    def floor(self):
        """What the next look asks from, as it stands in its query; None for the first look."""
        sql = self.window.query(60.0)[0]
        return None if "id >= (SELECT" in sql else int(sql.split("id >= ")[1].split(" ")[0])


@pytest.fixture
def table(clock):
    return Table(clock)


# -- the first look ----------------------------------------------------------------------------------------------------

def test_the_first_look_at_an_empty_table(table):
    assert table.look() == []
    table.insert()
    assert table.look() == [1]


def test_the_first_look_returns_what_is_recent(table):
    table.insert(age=120)
    table.insert(age=59)
    table.insert(age=1)
    assert table.look() == [2, 3]
    assert table.look() == []


def test_how_far_the_first_look_goes_back(table):
    table.insert(age=120)
    table.insert(age=59)
    assert table.look(seconds=300.0) == [1, 2]


def test_later_looks_return_rows_whatever_their_time_says(table):
    """A row is as old as its transaction; one that took an hour is new when it commits."""
    assert table.look() == []
    table.insert(age=3600)
    assert table.look() == [1]


def test_an_old_table_is_not_read_from_its_begin(table, clock):
    for _ in range(100):
        table.insert(age=120)
    assert len(table.answer()) == Window.LIMIT // 2 + 1
    assert table.look() == []
    table.insert()
    assert table.look() == [101]


# -- each row once -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("later_first", [False, True])
def test_two_looks_that_overlap(table, later_first):
    table.insert()
    table.look()
    asked = [(table.window.highest, table.answer())]
    table.insert()
    asked.append((table.window.highest, table.answer()))
    assert [table.take(*each) for each in (asked[::-1] if later_first else asked)] == (
        [[2], []] if later_first else [[], [2]])
    table.insert()
    assert table.look() == [3]


def test_a_row_is_returned_once_by_its_id(table, clock):
    table.look()
    for _ in range(30):
        expected = [table.insert(), table.insert()]
        assert table.look() == expected
        assert table.look() == []
        clock.now += 5


def test_rows_of_open_transactions_are_not_there_yet(table):
    table.look()
    transaction = table.begin()
    transaction.insert()
    assert table.look() == []
    transaction.commit()
    assert table.look() == [1]


# -- commits out of order ----------------------------------------------------------------------------------------------

def test_a_lower_id_that_commits_later_is_returned(table, clock):
    """Whenever its transaction ends, for as long as the server says that it is open."""
    table.look()
    slow = table.begin()
    assert slow.insert() == 1
    assert [table.insert() for _ in range(3)] == [2, 3, 4]
    assert table.look() == [2, 3, 4]
    for _ in range(50):
        clock.now += 5
        assert table.look() == []
    slow.commit()
    assert table.look() == [1]
    assert table.look() == []


def test_a_lower_id_that_was_open_at_the_first_look(table, clock):
    for _ in range(3):
        table.insert()
    slow = table.begin()
    slow.insert()
    table.insert()
    assert table.look() == [1, 2, 3, 5]
    clock.now += 100
    assert table.look() == []
    slow.commit()
    assert table.look() == [4]


def test_a_lower_id_than_all_that_the_first_look_saw(table, clock):
    slow = table.begin()
    assert slow.insert() == 1
    assert table.insert() == 2
    assert table.look() == [2]
    clock.now += 100
    assert table.look() == []
    slow.commit()
    assert table.look() == [1]


def test_an_id_that_is_given_a_moment_before_its_transaction_has_a_number(table, clock):
    """So a row may be below ids that are settled by number alone: they are not for some seconds."""
    table.look()
    late = next(table.ids)
    table.insert()
    assert table.look() == [2]
    assert table.look() == []       # nobody is open, and the floor has to stay below
    transaction = table.begin()
    transaction.rows.append((late, clock.now))
    transaction.commit()
    assert table.look() == [1]


def test_the_floor_is_raised_once_all_below_it_are_settled(table, clock):
    table.look()
    for _ in range(3):
        table.insert()
    table.look()
    assert table.floor < 1
    clock.now += Window.OVERLAP_SECONDS - 1
    table.look()
    assert table.floor < 1
    clock.now += 2
    table.look()
    assert table.floor == 3


def test_the_floor_stays_while_an_older_transaction_is_open(table, clock):
    table.look()
    slow = table.begin()
    table.insert()
    table.look()
    clock.now += Window.OVERLAP_SECONDS + 1
    table.look()
    assert table.floor == 0
    slow.commit()
    table.look()
    assert table.floor == 1


def test_a_transaction_that_began_later_holds_up_nothing(table, clock):
    table.look()
    table.insert()
    table.look()
    table.begin()       # an idle transaction, open for ever
    clock.now += Window.OVERLAP_SECONDS + 1
    table.look()
    assert table.floor == 1


def test_a_transaction_that_lasts_too_long_is_not_waited_for(table, clock):
    table.look()
    table.begin()
    table.insert()
    table.look()
    clock.now += Window.LONGEST_SECONDS - 1
    table.look()
    assert table.floor == 0
    clock.now += 2
    table.look()
    assert table.floor == 1


def test_what_is_kept_does_not_grow(table, clock):
    table.look()
    for _ in range(200):
        table.insert()
        assert table.look() is not None
        clock.now += 5
    assert len(table.answer()) <= 2 + Window.OVERLAP_SECONDS // 5 + 1
    assert len(pickle.dumps(table.window)) < 500


# -- too many ----------------------------------------------------------------------------------------------------------

def test_too_many_to_be_told_apart(table):
    table.look()
    for _ in range(Window.LIMIT):
        table.insert()
    assert len(table.look()) == Window.LIMIT
    table = Table(table.clock)
    table.look()
    for _ in range(Window.LIMIT + 1):
        table.insert()
    assert table.look() is None


def test_after_too_many_it_goes_on(table, clock):
    table.look()
    for _ in range(3 * Window.LIMIT):
        table.insert()
    assert table.look() is None
    expected = [table.insert(), table.insert()]
    assert table.look() == expected
    assert table.look() == []


def test_a_busy_table_is_read_within_the_limit(table, clock):
    """While an old transaction is open, rows that were seen do not fill the limit: new ones have room in it."""
    table.look()
    table.begin()
    for _ in range(30):
        expected = [table.insert() for _ in range(Window.LIMIT // 2)]
        assert table.look() == expected
        clock.now += 5


def test_a_commit_that_is_late_by_half_the_limit(table, clock):
    """So many higher ids came before it that it is left to its NOTIFY."""
    table.look()
    slow = table.begin()
    slow.insert()
    for _ in range(Window.LIMIT // 2):
        table.insert()
    assert len(table.look()) == Window.LIMIT // 2
    slow.commit()
    assert table.look() == [1]
    slow = table.begin()
    slow.insert()
    for _ in range(Window.LIMIT // 2 + 1):
        table.insert()
    table.look()
    slow.commit()
    assert table.look() == []


# -- another table -----------------------------------------------------------------------------------------------------

def test_a_table_whose_ids_went_back(table, clock):
    """After a failover that lost rows, or a restore: nobody knows what was missed, and the next look starts anew."""
    for _ in range(9):
        table.insert()
    table.look()
    clock.now += Window.OVERLAP_SECONDS + 1
    table.insert()
    table.look()
    assert table.floor == 9
    del table.rows[5:]
    assert table.look() is None
    assert table.floor is None
    table.ids = itertools.count(6)
    table.insert(age=120)
    table.insert()
    assert table.look() == [1, 2, 3, 4, 5, 7]      # those of the last minute, once more
    assert table.look() == []


def test_a_table_that_lost_its_latest_rows(table, clock):
    """A failover may lose them, and the ids that are given again are those of other rows."""
    for _ in range(9):
        table.insert()
    table.look()
    del table.rows[7:]
    assert table.look() is None
    table.look()
    table.ids = itertools.count(8)
    table.insert()
    assert table.look() == [8]


def test_a_table_that_was_emptied(table, clock):
    """Odoo deletes old rows: the highest id is lower then, or there is none."""
    table.insert()
    table.look()
    clock.now += Window.OVERLAP_SECONDS + 1
    table.look()
    del table.rows[:]
    assert table.look() is None
    table.insert()
    assert table.look() == [2]
