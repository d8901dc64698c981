"""How long to pause between attempts, and between equal log lines."""
import pytest

from bus_alt_connection.runtime import Backoff, Throttle

pytestmark = pytest.mark.usefixtures("clock")


# -- between attempts --------------------------------------------------------------------------------------------------

def test_the_first_retry_is_made_at_once_and_the_others_slow_down():
    waits = Backoff()
    assert waits.next() == 0.0
    for number in range(8):
        ceiling = min(0.05 * 2 ** number, Backoff.LONGEST)
        assert ceiling / 2 <= waits.next() <= ceiling


def test_it_never_pauses_longer_than_the_longest():
    waits = Backoff()
    assert max(waits.next() for _ in range(2000)) <= Backoff.LONGEST


def test_many_at_once_are_spread():
    waits = [Backoff() for _ in range(100)]
    for each in waits:
        for _ in range(10):
            each.next()
    latest = [each.next() for each in waits]
    assert len(set(latest)) > 90 and max(latest) - min(latest) > 0.1


@pytest.mark.parametrize("seconds", [10.0, 60.0])
def test_what_lasts_is_retried_slowly(clock, seconds):
    """About once in 5 s, with jitter; a restart or a failover is over by then."""
    waits = Backoff(seconds)
    clock.now += seconds
    assert waits.next() == 0.0
    clock.now += 0.1
    pauses = [waits.next() for _ in range(100)]
    assert 4.0 <= min(pauses) < 4.3 and 4.7 < max(pauses) <= 5.0


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
