"""What the simulation found in the addon, each as the few events that it needs."""
import json

from .faults import Fault, lock_login, lock_table, move, restart
from .life import Life
from .postgres import Row


def commit(life, began=0.0):
    """A row of database one whose NOTIFY never comes; its transaction began so many seconds ago."""
    database = life.primary.databases["one"]
    now = life.kernel.now
    row = Row(life.row_number(), database.next_id(), json.dumps(["one", "channel", 0], separators=(",", ":")),
              now - began, life.clock(now - began))
    life.commit(row, database)


def lives(seed=1, **given):
    """Live with these events; what must hold is checked as ever."""
    usual = {"kind": "19", "pooled": True, "databases": 1, "clients": 7, "last": 100, "senders": 0}
    life = Life(seed, **{**usual, **given})
    life.run()
    assert life.broken is None, life.broken
    return life


def at(time, call, *args, **kwargs):
    return time, lambda life: call(life, *args, **kwargs)


class Plan:
    """In the place of a random one: the option with this index, and this number."""

    def __init__(self, index=0, number=0.9):
        self.index, self.number = index, number

    def choice(self, options):
        return options[self.index]

    def random(self):
        return self.number

    def uniform(self, low, high):
        return low


def fault(time, make, seconds=0.0, aim=None, **plan):
    return time, lambda life: Fault(life, make, seconds, aim, plan=Plan(**plan)).arm()


def kill_listener(life, _plan):
    for backend in list(life.primary.backends.values()):
        if "imbus" in backend.listens:
            backend.terminate("terminating connection due to administrator command")
    return "the listener is killed", None


def test_the_row_of_a_long_transaction_whose_notify_is_lost():
    """create_date is when the transaction began: a look that goes by it never finds the row. Seeds 3 and 101."""
    life = lives(events=[at(100.0, commit, began=200.0)])
    assert life.counts["delivered"]


def test_a_path_that_moved_is_noticed_while_the_only_database_is_locked():
    """The question where the path leads was asked when a look was due, which was a minute later. Seed 693."""
    lives(events=[fault(50.0, lock_table, 120.0), fault(130.0, move, 120.0)])


def test_a_copy_that_lacks_rows_gives_their_ids_anew():
    """A look for what is above the highest id that was seen found nothing of it. Seed 5053."""
    events = [at(20.0 + number, commit) for number in range(5)]
    events += [fault(100.0, move, 1.0, index=-1), *(at(100.5 + number / 10, commit) for number in range(5))]
    life = lives(events=events)
    assert life.counts["delivered"]


def test_the_row_of_a_long_transaction_just_before_a_restart():
    """A look on a server that was restarted went by time alone. Seed 721846422."""
    life = lives(kind="20", events=[at(100.0, commit, began=200.0), fault(100.1, restart, 0.5)])
    assert life.counts["delivered"]


def test_a_log_in_that_is_not_finished_is_continued_by_the_verification():
    """Each heartbeat closed it, and each attempt left another backend waiting. Seed 10018."""
    most = []

    def count(life):
        most.append(sum(not each.ready for each in life.primary.backends.values()))
    # log-ins wait from the moment on at which the listener has a session again
    events = [fault(100.0, lock_login, 60.0, ("state", 2)), fault(100.1, kill_listener)]
    lives(pooled=False, events=events + [at(100.0 + 5 * number, count) for number in range(12)])
    assert 1 <= max(most) <= 3


def test_a_stop_warns_of_nothing():
    """Each stop of Odoo logged that the connection was lost. Any seed."""
    life = lives(events=[])
    assert not [text for _, kind, text, _ in life.history if kind == "log" and not text.startswith("INFO")]
