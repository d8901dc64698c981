"""The recovery of cron: jobs are triggered when NOTIFYs may have been missed, never rounds without end."""
import contextlib
from types import SimpleNamespace

import pytest

from bus_alt_connection import cron, runtime, state
from bus_alt_connection.loop_connection import LoopConnection

POLL = 5.0      # seconds


class Listener:
    """As much of one as the recovery reads."""

    def __init__(self, loop):
        self.loop_connection, self.path = loop, None
        self.settings = SimpleNamespace(poll_seconds=POLL)
        self.subscribers = cron.Subscribers(lambda: ["one", "two"])
        self.state, self.checks = state.initial(), []

    def enter(self, phase, **more):
        self.state = state.successor(self.state, phase, **more)

    def check_path(self, path):
        self.checks.append(runtime.monotonic())


@pytest.fixture
def listener(clock):
    with contextlib.closing(LoopConnection(on_close=int)) as loop:
        yield Listener(loop)


@pytest.fixture
def rounds(listener, clock):
    """`rounds(count)`: how many of so many steps trigger the jobs; the loop is idle unless `busy`."""
    recovery = cron.Recovery(listener)

    def rounds(count, every=POLL, busy=False):
        before = recovery.woken
        for _ in range(count):
            clock.now += every
            recovery.step_inline()
            if not busy:
                listener.loop_connection.poll()
        return recovery.woken - before
    return rounds


def test_jobs_are_polled_while_it_is_not_listening(listener, rounds):
    assert rounds(10) == 10
    assert {(each.channel, each.payload) for each in listener.loop_connection.notifies} == {
        ("cron_trigger", "one"), ("cron_trigger", "two")}


def test_no_more_often_than_asked(rounds):
    """Attempts to connect are made twice a second; each round is work for all databases."""
    assert 8 <= rounds(100, every=0.5) <= 10


@pytest.mark.parametrize("listens", [1.0, 19.0, 100.0])
def test_after_a_loss_the_first_poll_has_its_time_too(listener, rounds, listens):
    listener.enter(state.LISTENING)
    assert rounds(int(listens), every=1.0) == 1
    listener.enter(state.CONNECTING)
    assert rounds(4, every=1.0) == 0 and rounds(1, every=1.0) == 1


def test_rounds_without_end_are_not_triggered(listener, rounds):
    """A loop that is busy with a round is left alone for some polls after it."""
    assert rounds(1, busy=True) == 1
    assert rounds(5, busy=True) == 0
    listener.loop_connection.poll()
    assert rounds(3) == 0
    assert rounds(3) == 3


def test_a_listener_that_is_back_triggers_once(listener, rounds):
    assert rounds(2, busy=True) == 1
    listener.enter(state.LISTENING)
    assert rounds(20, every=1.0) == 1
    listener.enter(state.VERIFYING)     # in doubt
    listener.enter(state.LISTENING)
    assert rounds(3, every=1.0) == 1


def test_while_it_is_listening_the_path_is_asked_for(listener, rounds, clock):
    listener.enter(state.LISTENING)
    rounds(100, every=1.0)
    assert len(listener.checks) in (4, 5) and listener.checks[0] >= 1020.0
