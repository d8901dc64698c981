"""What upstream's loop waits on, in the place of a psycopg2 connection: it never fails while it is open."""
import functools
import select
import selectors
import sys
import threading

import psycopg2
import pytest
from psycopg2 import extensions

from bus_alt_connection.loop_connection import LoopConnection

LONG = 60.0


@pytest.fixture
def closed():
    """How often the connection was said to be closed."""
    return []


@pytest.fixture
def connection(closed):
    connection = LoopConnection(on_close=lambda: closed.append(True))
    yield connection
    connection.close()


def readable(connection, timeout=0.0):
    return bool(select.select([connection], [], [], timeout)[0])


def taken(connection):
    """What a loop finds, as each series reads it: (channel, payload), oldest first."""
    connection.poll()
    found = []
    while connection.notifies:
        notification = connection.notifies.pop(0)
        assert isinstance(notification, extensions.Notify)
        found.append((notification.channel, notification.payload))
    return found


# -- deliver and poll --------------------------------------------------------------------------------------------------

def test_nothing_has_arrived(connection):
    assert not readable(connection)
    assert taken(connection) == []
    assert not connection.closed


def test_what_is_delivered_wakes_the_loop_and_is_found(connection):
    connection.deliver("imbus", "one")
    assert readable(connection, LONG)
    assert connection.notifies == []        # until it is polled, as with psycopg2
    assert taken(connection) == [("imbus", "one")]
    assert not readable(connection)


def test_poll_says_what_psycopg2_says(connection):
    assert connection.poll() == extensions.POLL_OK


def test_the_order_is_kept(connection):
    for number in range(100):
        connection.deliver("imbus", str(number))
    assert taken(connection) == [("imbus", str(number)) for number in range(100)]


def test_what_is_not_taken_stays(connection):
    connection.deliver("imbus", "one")
    connection.poll()
    connection.deliver("imbus", "two")
    assert taken(connection) == [("imbus", "one"), ("imbus", "two")]


def test_a_selector_takes_it(connection):
    """As series 17 and later wait."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        assert not selector.select(0)
        connection.deliver("imbus", "one")
        assert selector.select(LONG)


# -- equal ones --------------------------------------------------------------------------------------------------------

def test_equal_ones_that_wait_are_one(connection):
    for _ in range(3):
        connection.deliver("cron_trigger", "demo")
        connection.deliver("imbus", "demo")
    assert taken(connection) == [("cron_trigger", "demo"), ("imbus", "demo")]


def test_one_that_was_taken_may_come_again(connection):
    for _ in range(3):
        connection.deliver("imbus", "one")
        assert readable(connection, LONG)
        assert taken(connection) == [("imbus", "one")]


def test_whether_something_waits(connection):
    assert not connection.signalled
    connection.deliver("imbus", "one")
    assert connection.signalled
    connection.poll()
    assert not connection.signalled


def test_a_loop_that_does_not_look_for_long_costs_no_more(connection):
    """However much arrives, delivering does not block."""
    for number in range(100_000):
        connection.deliver("imbus", str(number % 1000))
    assert len(taken(connection)) == 1000
    assert not readable(connection)


# -- close -------------------------------------------------------------------------------------------------------------

def test_a_closed_one_raises_what_psycopg2_raises(connection, closed):
    connection.deliver("imbus", "one")
    connection.close()
    assert connection.closed and closed == [True]
    with pytest.raises(psycopg2.InterfaceError):
        connection.poll()


def test_closed_twice_is_said_once(connection, closed):
    connection.close()
    connection.close()
    assert closed == [True]


def test_what_arrives_after_the_end_is_dropped(connection):
    connection.close()
    for number in range(3):
        connection.deliver("imbus", str(number))


# -- threads -----------------------------------------------------------------------------------------------------------

def test_a_loop_that_waits_is_woken_by_another_thread(connection):
    threading.Timer(0.01, connection.deliver, ("imbus", "one")).start()
    assert readable(connection, LONG)
    assert taken(connection) == [("imbus", "one")]


def test_nothing_is_lost_between_many_threads(connection, request):
    """A notification that arrives while the loop takes others wakes it once more."""
    request.addfinalizer(functools.partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)     # the threads take turns as often as they can
    threads, each = 4, 3000
    wanted = {("imbus", f"{thread} {number}") for thread in range(threads) for number in range(each)}

    def deliver(thread):
        for number in range(each):
            connection.deliver("imbus", f"{thread} {number}")
    for thread in range(threads):
        threading.Thread(target=deliver, args=(thread,), daemon=True).start()
    found = []
    while len(found) < len(wanted):
        assert readable(connection, 10), f"{len(wanted) - len(found)} are lost"
        found += taken(connection)
    assert set(found) == wanted and len(found) == len(wanted)
