"""The state of a listener: which follows which, what it keeps, and which log line a change is worth.

CONNECTING → VERIFYING → LISTENING, back to VERIFYING when in doubt, back to CONNECTING on any loss.
"""
import logging

import pytest

from bus_alt_connection import errors, state
from bus_alt_connection.errors import ConnectionLost
from bus_alt_connection.state import CONNECTING, LISTENING, STOPPED, VERIFYING

HERE, THERE = "pg1:5432/postgres as odoo (backend pid 1)", "pg2:5432/postgres as odoo (backend pid 2)"
REFUSED = ConnectionLost("Connection refused", "pg1:5432/postgres as odoo")
CLOSED = ConnectionLost("server closed the connection unexpectedly", HERE)
SILENT = ConnectionLost("no heartbeat was answered within 5 s, the path is silent", HERE)
PASSWORD = ConnectionLost('FATAL:  password authentication failed for user "odoo"', "pg1:5432/postgres as odoo")


CONNECT = [(VERIFYING, {"endpoint": HERE}), (LISTENING, {})]


@pytest.fixture
def follow(clock):
    """The states that follow one another, a second apart: [(phase, {what `successor` is told besides})]."""
    clock.now = 0.0

    def follow(*steps, since=None):
        states = [since or state.initial()]
        for phase, more in steps:
            clock.now += 1
            states.append(state.successor(states[-1], phase, **more))
        return states
    return follow


# -- the values --------------------------------------------------------------------------------------------------------

def test_the_first_is_not_listening_since_it_began(follow):
    assert follow() == [(CONNECTING, 0.0, None, None, 0.0, 0)]


def test_a_connection_is_made(follow):
    _, verifying, listening = follow(*CONNECT)
    assert verifying == (VERIFYING, 1.0, HERE, None, 0.0, 1)
    assert listening == (LISTENING, 2.0, HERE, None, None, 1)


def test_it_is_lost_and_made_again(follow):
    *_, lost, refused, verifying, listening = follow(
        *CONNECT, (CONNECTING, {"problem": CLOSED}), (CONNECTING, {"problem": REFUSED}),
        (VERIFYING, {"endpoint": THERE}), (LISTENING, {}))
    assert lost == (CONNECTING, 3.0, None, CLOSED, 3.0, 1)
    assert refused == (CONNECTING, 3.0, None, REFUSED, 3.0, 1)          # lost since the first of the two
    assert verifying == (VERIFYING, 5.0, THERE, REFUSED, 3.0, 2)        # the problem lasts until it is LISTENING
    assert listening == (LISTENING, 6.0, THERE, None, None, 2)


def test_it_is_in_doubt(follow):
    """The pooled path leads elsewhere: it does not count as listening from then on, on the same connection."""
    *_, doubting = follow(*CONNECT, (VERIFYING, {}))
    assert doubting == (VERIFYING, 3.0, HERE, None, 3.0, 1)
    *_, again = follow((LISTENING, {}), since=doubting)
    assert again == (LISTENING, 4.0, HERE, None, None, 1)


def test_the_pooled_path_has_a_problem_while_it_is_verified(follow):
    *_, first, second, listening = follow(CONNECT[0], (VERIFYING, {"problem": REFUSED}),
                                          (VERIFYING, {"problem": PASSWORD}), (LISTENING, {}))
    assert first == (VERIFYING, 1.0, HERE, REFUSED, 0.0, 1)
    assert second == (VERIFYING, 1.0, HERE, PASSWORD, 0.0, 1)
    assert listening == (LISTENING, 4.0, HERE, None, None, 1)


def test_a_defect_names_no_problem(follow):
    *_, after = follow(*CONNECT, (CONNECTING, {}))
    assert after == (CONNECTING, 3.0, None, None, 3.0, 1)


def test_the_end(follow):
    *_, stopped = follow(*CONNECT, (STOPPED, {}))
    assert stopped == (STOPPED, 3.0, None, None, 3.0, 1)
    *_, stopped = follow((CONNECTING, {"problem": REFUSED}), (STOPPED, {}))
    assert stopped == (STOPPED, 5.0, None, REFUSED, 3.0, 0)


def test_a_state_is_replaced_and_not_changed():
    with pytest.raises(AttributeError):
        state.initial().phase = LISTENING


# -- the log -----------------------------------------------------------------------------------------------------------

class Log:
    """A listener's log: `log.enter(phase, …)` changes the state, `log.lines` are (level, line) since the last look."""

    def __init__(self, caplog, clock):
        self.caplog, self.clock = caplog, clock
        self.of_the_listener = state.StateLog("bus", 5.0)
        self.state = state.initial()

    def enter(self, phase, **more):
        before = self.state
        self.state = state.successor(before, phase, **more)
        self.of_the_listener.change(before, self.state)

    def connect(self, endpoint=HERE):
        self.enter(VERIFYING, endpoint=endpoint)
        self.enter(LISTENING)

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


def test_listening_is_one_line(log):
    log.connect()
    assert log.line == (logging.INFO, f"The bus listener is listening on {HERE}.")


def test_a_loss_and_the_return_are_one_line_each(log, clock):
    log.connect()
    assert log.lines
    log.lose()
    assert log.line == (logging.WARNING, f"The bus listener lost its connection to {HERE}: server closed the connection"
                        f" unexpectedly. {CLOSED.cause.remedy} Retrying.")
    clock.now += 1.5
    log.connect(THERE)
    assert log.line == (logging.INFO, f"The bus listener is listening again on {THERE} after 1.50 s. What was missed is"
                        " delivered now.")


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
    assert log.line[1].startswith(f"The bus listener is listening again on {HERE} after 2.00 s.")


def test_a_problem_is_logged_when_it_comes_and_not_again_while_it_lasts(log, clock):
    log.lose(REFUSED)
    assert log.lines
    clock.now += 120
    log.enter(VERIFYING, endpoint=HERE)
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
    log.enter(LISTENING)
    assert not log.lines


def test_the_pooled_path_does_not_answer(log):
    log.enter(VERIFYING, endpoint=HERE)
    problem = ConnectionLost("Odoo's own db_host does not answer (Connection refused)")
    log.enter(VERIFYING, problem=problem)
    assert log.line == (logging.WARNING, f"The bus listener cannot be verified: {problem}. {problem.cause.remedy}"
                        " Retrying; polling every 5 s.")


def test_the_end_is_no_line(log):
    log.connect()
    assert log.lines
    log.enter(STOPPED)
    assert not log.lines
    log = Log(log.caplog, log.clock)
    log.enter(STOPPED)
    assert not log.lines
