# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The state of a listener: one value that is replaced whole, and the log lines of its changes.

::

    CONNECTING ──> VERIFYING ──> CATCHING_UP ──> LISTENING
        ^              │  ^           │              │ │
        │              │  └───────────│── in doubt ──┘ │
        └───── any loss ──────────────┴────────────────┘          STOPPED at the end

The table is polled while the state is not LISTENING. The listener's thread writes the state, in
``Listener.enter`` only; health, metrics and log read it.
"""

import logging
from typing import NamedTuple, Optional

from .backoff import Throttle
from .errors import OTHER_DATABASE, OTHER_SERVER, POOLER, REFUSED, UNDELIVERED, ConnectionLost

_logger = logging.getLogger(__name__)

CONNECTING = "connecting"  # no connection
VERIFYING = "verifying"  # it LISTENs; whether NOTIFYs reach it is not proven
CATCHING_UP = "catching up"  # NOTIFYs reach it; what was missed is looked for
LISTENING = "listening"
STOPPED = "stopped"


class State(NamedTuple):
    phase: str
    endpoint: Optional[str]  # of the connection, for people; None without one
    problem: Optional[ConnectionLost]  # the latest; None while LISTENING
    lost_at: Optional[float]  # time.monotonic() when LISTENING ended; None while it lasts
    connections: int  # made so far


UNVERIFIED = [each.name for each in (OTHER_SERVER, OTHER_DATABASE, POOLER, UNDELIVERED, REFUSED)]


def initial(now: float) -> State:
    return State(CONNECTING, None, None, now, 0)


def entered(
    state: State,
    phase: str,
    now: float,
    endpoint: Optional[str] = None,
    problem: Optional[ConnectionLost] = None,
) -> State:
    """The state that follows.

    :param endpoint: of a new connection; without it that of before, which ends with CONNECTING
    :param problem: what ended the phase before; without it that of before, which ends with LISTENING
    """
    well = phase == LISTENING
    return State(
        phase,
        endpoint or (None if phase in (CONNECTING, STOPPED) else state.endpoint),
        None if well else problem or state.problem,
        None if well else now if state.lost_at is None else state.lost_at,
        state.connections + (endpoint is not None),
    )


class StateLog:
    """Logs the changes of one listener's state.

    A state that goes back and forth is not logged each time: a kind of problem once a minute, and
    the return from it if it was logged itself.

    :param name: the listener's
    :param poll_seconds: how often is polled meanwhile
    """

    def __init__(self, name: str, poll_seconds: float) -> None:
        self._name, self._poll_seconds = name, poll_seconds
        self._throttle = Throttle()
        self._return_due = True  # whether to log that it is LISTENING

    def change(self, before: State, after: State, now: float, woken: int) -> None:
        """Log a change.

        :param woken: subscribers that were woken since the loss
        """
        _logger.debug("The %s listener is %s.", self._name, after.phase)
        if after.phase == LISTENING:
            if self._return_due:
                self._log_listening(before, after, now, woken)
            self._return_due = False
        elif after.problem is not None and after.problem is not before.problem:
            self._log_problem(before, after.problem)

    def _log_listening(self, before: State, after: State, now: float, woken: int) -> None:
        if before.problem is None:
            _logger.info("The %s listener is listening on %s.", self._name, after.endpoint)
            return
        _logger.info(
            "The %s listener is listening again on %s after %.2f s; %d subscriber(s) woken.",
            self._name,
            after.endpoint,
            now - (before.lost_at or now),
            woken,
        )

    def _log_problem(self, before: State, problem: ConnectionLost) -> None:
        cause = problem.cause
        if not self._throttle.due(f"{cause.name}, {cause.level}"):
            return
        self._return_due = True
        polling = f"olling every {self._poll_seconds:g} s."
        if cause.name in UNVERIFIED:
            text = f"does not receive NOTIFYs: {problem.reason}. {cause.remedy} P{polling}"
        elif before.phase == CONNECTING:
            where = " to" if problem.endpoint else ":"
            text = f"cannot connect{where} {problem}. {cause.remedy} Retrying; p{polling}"
        else:
            text = f"lost its connection to {problem}. {cause.remedy} Retrying."
        _logger.log(cause.level, "The %s listener %s", self._name, text)
