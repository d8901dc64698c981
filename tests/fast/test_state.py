"""The state of a listener: which follows which, what it keeps, and which log line a change is worth.

CONNECTING → VERIFYING → CATCHING_UP → LISTENING, back to VERIFYING when in doubt, back to CONNECTING on any loss.
"""
import logging

import pytest

from bus_alt_connection import backoff, errors, state
from bus_alt_connection.errors import ConnectionLost
from bus_alt_connection.state import CATCHING_UP, CONNECTING, LISTENING, STOPPED, VERIFYING

HERE, THERE = "pg1:5432/postgres as odoo (backend pid 1)", "pg2:5432/postgres as odoo (backend pid 2)"
REFUSED = ConnectionLost("Connection refused", "pg1:5432/postgres as odoo")
CLOSED = ConnectionLost("server closed the connection unexpectedly", HERE)
SILENT = ConnectionLost("no heartbeat was answered within 5 s, the path is silent", HERE)
PASSWORD = ConnectionLost('FATAL:  password authentication failed for user "odoo"', "pg1:5432/postgres as odoo")


def follow(*steps, since=None):
    """The states that follow one another, a second apart: [(phase, {what `entered` is told besides})]."""
    states = [since or state.initial(0.0)]
    for now, (phase, more) in enumerate(steps, 1):
        states.append(state.entered(states[-1], phase, float(now), **more))
    return states


CONNECT = [(VERIFYING, {"endpoint": HERE}), (CATCHING_UP, {}), (LISTENING, {})]


# -- the values --------------------------------------------------------------------------------------------------------

def test_the_first_is_not_listening_since_it_began():
    assert state.initial(5.0) == (CONNECTING, None, None, 5.0, 0)


def test_a_connection_is_made():
    _, verifying, catching_up, listening = follow(*CONNECT)
    assert verifying == (VERIFYING, HERE, None, 0.0, 1)
    assert catching_up == (CATCHING_UP, HERE, None, 0.0, 1)
    assert listening == (LISTENING, HERE, None, None, 1)


def test_it_is_lost_and_made_again():
    *_, lost, refused, verifying, catching_up, listening = follow(
        *CONNECT, (CONNECTING, {"problem": CLOSED}), (CONNECTING, {"problem": REFUSED}),
        (VERIFYING, {"endpoint": THERE}), (CATCHING_UP, {}), (LISTENING, {}))
    assert lost == (CONNECTING, None, CLOSED, 4.0, 1)
    assert refused == (CONNECTING, None, REFUSED, 4.0, 1)       # lost since the first of the two
    assert verifying == (VERIFYING, THERE, REFUSED, 4.0, 2)     # the problem lasts until it is LISTENING
    assert catching_up == (CATCHING_UP, THERE, REFUSED, 4.0, 2)
    assert listening == (LISTENING, THERE, None, None, 2)


def test_it_is_in_doubt():
    """The pooled path leads elsewhere: it does not count as listening from then on, on the same connection."""
    *_, doubting = follow(*CONNECT, (VERIFYING, {}))
    assert doubting == (VERIFYING, HERE, None, 4.0, 1)
    *_, again = follow((CATCHING_UP, {}), (LISTENING, {}), since=doubting)
    assert again == (LISTENING, HERE, None, None, 1)


def test_a_defect_names_no_problem():
    *_, after = follow(*CONNECT, (CONNECTING, {}))
    assert after == (CONNECTING, None, None, 4.0, 1)


def test_the_end():
    *_, stopped = follow(*CONNECT, (STOPPED, {}))
    assert stopped == (STOPPED, None, None, 4.0, 1)
    *_, stopped = follow((CONNECTING, {"problem": REFUSED}), (STOPPED, {}))
    assert stopped == (STOPPED, None, REFUSED, 0.0, 0)


def test_a_state_is_replaced_and_not_changed():
    with pytest.raises(AttributeError):
        state.initial(0.0).phase = LISTENING


# -- the log -----------------------------------------------------------------------------------------------------------

class Log:
    """A listener's log: `log.enter(phase, …)` changes the state, `log.lines` are (level, line) since the last look."""

    def __init__(self, caplog, clock):
        self.caplog, self.clock = caplog, clock
        self.of_the_listener = state.StateLog("bus", 5.0)
        self.state = state.initial(clock.now)

    def enter(self, phase, woken=0, **more):
        before = self.state
        self.state = state.entered(before, phase, self.clock.now, **more)
        self.of_the_listener.change(before, self.state, self.clock.now, woken)

    def connect(self, endpoint=HERE, woken=0):
        self.enter(VERIFYING, endpoint=endpoint)
        self.enter(CATCHING_UP)
        self.enter(LISTENING, woken=woken)

    def lose(self, problem=CLOSED):
        self.enter(CONNECTING, problem=problem)

    @property
    def lines(self):
        found = [(record.levelno, record.getMessage()) for record in self.caplog.records
                 if record.levelno > logging.DEBUG]
        self.caplog.clear()
        return found

    @property
    def line(self):
        found, = self.lines
        return found


@pytest.fixture
def log(caplog, clock):
    caplog.set_level(logging.DEBUG, logger=state.__name__)
    return Log(caplog, clock)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set: `clock.now += 5`."""
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now
    monkeypatch.setattr(backoff, "time", Clock())
    return backoff.time


def test_listening_is_one_line(log):
    log.connect()
    assert log.line == (logging.INFO, f"The bus listener is listening on {HERE}.")


def test_a_loss_and_the_return_are_one_line_each(log, clock):
    log.connect()
    assert log.lines
    log.lose()
    assert log.line == (logging.WARNING, f"The bus listener lost its connection to {HERE}: server closed the connection"
                        " unexpectedly. Nothing to do if PostgreSQL is being restarted. Retrying.")
    clock.now += 1.5
    log.connect(THERE, woken=12)
    assert log.line == (logging.INFO,
                        f"The bus listener is listening again on {THERE} after 1.50 s; 12 subscriber(s) woken.")


def test_the_time_is_that_of_the_loss_and_not_of_the_latest_problem(log, clock):
    log.connect()
    log.lose()
    clock.now += 3
    log.lose(REFUSED)
    clock.now += 4
    assert log.lines
    log.connect()
    assert "after 7.00 s" in log.line[1]


def test_what_cannot_be_connected_to(log):
    log.lose(REFUSED)
    assert log.line == (logging.WARNING, f"The bus listener cannot connect to {REFUSED}. {REFUSED.cause.remedy}"
                        " Retrying; polling every 5 s.")
    log.lose(PASSWORD)
    assert log.line == (logging.ERROR, f"The bus listener cannot connect to {PASSWORD}. {PASSWORD.cause.remedy}"
                        " Retrying; polling every 5 s.")


def test_without_an_endpoint_none_is_named(log):
    """A setting that is wrong leads nowhere."""
    log.lose(ConnectionLost("wrong setting: it is wrong"))
    assert log.line[1].startswith("The bus listener cannot connect: wrong setting: it is wrong. Correct the setting.")


@pytest.mark.parametrize("cause", [errors.OTHER_SERVER, errors.OTHER_DATABASE, errors.POOLER, errors.UNDELIVERED,
                                   errors.REFUSED])
def test_a_connection_on_which_no_notify_arrives(log, cause):
    log.enter(VERIFYING, endpoint=HERE)
    log.lose(ConnectionLost("it listens elsewhere", HERE, cause))
    assert log.line == (logging.ERROR, "The bus listener does not receive NOTIFYs: it listens elsewhere."
                        f" {cause.remedy} Polling every 5 s.")


def test_the_level_is_the_causes(log):
    """Where there is another endpoint to try, it is no error yet."""
    cause = errors.OTHER_SERVER._replace(level=logging.WARNING, remedy="Trying the next endpoint.")
    log.enter(VERIFYING, endpoint=HERE)
    log.lose(ConnectionLost("it listens elsewhere", HERE, cause))
    assert log.line[0] == logging.WARNING


def test_the_return_after_a_problem_at_the_start_names_it(log, clock):
    log.lose(REFUSED)
    clock.now += 2
    assert log.lines
    log.connect()
    assert log.line[1] == f"The bus listener is listening again on {HERE} after 2.00 s; 0 subscriber(s) woken."


def test_a_problem_is_logged_when_it_comes_and_not_again_while_it_lasts(log, clock):
    log.lose(REFUSED)
    assert log.lines
    clock.now += 120
    log.enter(VERIFYING, endpoint=HERE)
    log.enter(CATCHING_UP)
    assert not log.lines


def test_a_kind_of_problem_is_logged_once_a_minute(log, clock):
    for _ in range(59):
        log.lose(ConnectionLost("Connection refused"))
        clock.now += 1
    assert len(log.lines) == 1
    log.lose(ConnectionLost("Connection refused"))
    assert not log.lines
    clock.now += 1
    log.lose(ConnectionLost("Connection refused"))
    assert len(log.lines) == 1


def test_another_kind_of_problem_is_logged_at_once(log):
    log.lose(REFUSED)
    log.lose(PASSWORD)
    assert [level for level, _ in log.lines] == [logging.WARNING, logging.ERROR]


def test_a_state_that_flaps_does_not_flood_the_log(log, clock):
    """Lost and back twice a second for ten minutes: of each minute the first loss and its return."""
    log.connect()
    assert log.lines
    for _ in range(1200):
        log.lose()
        log.connect()
        clock.now += 0.5
    lines = log.lines
    assert len(lines) == 20
    assert ["listening again" in line for _, line in lines] == [False, True] * 10


def test_flapping_for_several_reasons(log, clock):
    log.connect()
    for number in range(1200):
        log.lose((CLOSED, SILENT, REFUSED)[number % 3])
        log.connect()
        clock.now += 0.5
    assert len(log.lines) <= 1 + 10 * 3 * 2


def test_what_is_not_logged_leaves_no_return_behind(log):
    """A reader sees no "again" without the loss that it belongs to."""
    log.connect()
    log.lose()
    log.connect()
    assert log.lines
    log.lose()
    log.connect()
    assert not log.lines


def test_in_doubt_and_back_is_no_line(log):
    log.connect()
    assert log.lines
    log.enter(VERIFYING)
    log.enter(CATCHING_UP)
    log.enter(LISTENING)
    assert not log.lines


def test_the_end_is_no_line(log):
    log.connect()
    assert log.lines
    log.enter(STOPPED)
    assert not log.lines
    log = Log(log.caplog, log.clock)
    log.enter(STOPPED)
    assert not log.lines
