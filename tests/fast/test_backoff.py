"""How long to pause between attempts, and between equal log lines."""
import pytest
from bus_alt_connection.backoff import Backoff, Throttle

from bus_alt_connection import backoff


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that stands until it is set: `clock.now = 5.0`."""
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now
    monkeypatch.setattr(backoff, "time", Clock())
    return backoff.time


def ceilings(waits, count):
    """What the next pauses are at most: each pause is between the half of it and it."""
    for ceiling in [0.05 * 2 ** number for number in range(count)]:
        ceiling = min(ceiling, waits.longest)
        yield ceiling / 2 <= waits.next() <= ceiling


# -- between attempts --------------------------------------------------------------------------------------------------

def test_the_first_retry_is_made_at_once_and_the_others_slow_down():
    waits = Backoff(longest=0.6)
    assert waits.next() == 0.0
    assert all(ceilings(waits, 8))


def test_it_never_pauses_longer_than_the_longest():
    waits = Backoff(longest=0.6)
    assert max(waits.next() for _ in range(2000)) <= 0.6


def test_many_at_once_are_spread():
    waits = [Backoff(longest=0.6) for _ in range(100)]
    for each in waits:
        for _ in range(10):
            each.next()
    latest = [each.next() for each in waits]
    assert len(set(latest)) > 90 and max(latest) - min(latest) > 0.1


def test_what_only_a_person_can_mend_is_retried_slowly():
    """Once in 5 s with jitter, also the first time."""
    waits = Backoff(longest=0.6)
    pauses = [waits.next(slow=True) for _ in range(100)]
    assert 4.0 <= min(pauses) < 4.3 and 4.7 < max(pauses) <= 5.0


def test_after_what_a_person_mended_it_goes_on_where_it_was():
    waits = Backoff(longest=0.6)
    waits.next(slow=True)
    assert 0.025 <= waits.next() <= 0.05        # not at once: the attempt before failed


def test_after_a_success_it_begins_anew(clock):
    waits = Backoff(longest=0.6)
    for _ in range(5):
        waits.next()
    clock.now += Backoff.SLOW_SECONDS + Backoff.GOOD_SECONDS + 0.1
    assert waits.next() == 0.0


@pytest.mark.parametrize("longest", [0.6, 20.0])
def test_a_pause_is_no_success(clock, longest):
    """However long it pauses itself, what comes after it is not the first attempt."""
    waits = Backoff(longest)
    waits.next()
    for _ in range(20):
        clock.now += max(longest, Backoff.SLOW_SECONDS)
        assert waits.next() > 0


# -- between equal log lines -------------------------------------------------------------------------------------------

def test_a_kind_of_line_is_due_once_a_minute(clock):
    throttle = Throttle()
    due = []
    for _ in range(180):
        due.append(throttle.due("a kind"))
        clock.now += 1
    assert [second for second, is_due in enumerate(due) if is_due] == [0, 60, 120]


def test_the_first_is_due_also_just_after_the_machine_started(clock):
    clock.now = 0.5
    assert Throttle().due("a kind")


def test_kinds_do_not_keep_each_other_from_being_logged():
    throttle = Throttle()
    assert throttle.due("one") and throttle.due("another")
    assert not throttle.due("one") and not throttle.due("another")


def test_two_throttles_are_apart():
    assert Throttle().due("a kind") and Throttle().due("a kind")
