# License AGPL-3.0 or later (https://www.gnu.org/licenses/agpl).
"""The state of a listener: one value that is replaced whole, and the log lines of its changes.

::

    CONNECTING ──> VERIFYING ──> LISTENING
        ^              │ ^           │ │
        │              │ └─ in doubt ┘ │
        └── any loss ──┴───────────────┘          STOPPED at the end

The table is polled while the state is not LISTENING. The listener's thread writes the state, in ``Listener.enter``
only; recovery, health route, metrics and log read it.
"""

import logging
from typing import NamedTuple, Optional

from . import runtime
from .errors import UNVERIFIED, ConnectionLost

_logger = logging.getLogger(__name__)

CONNECTING = "connecting"  # no connection
VERIFYING = "verifying"  # it LISTENs; whether NOTIFYs reach it is not proven
LISTENING = "listening"  # NOTIFYs reach it
STOPPED = "stopped"


class State(NamedTuple):
    phase: str
    since: float  # runtime.monotonic() when the phase began
    endpoint: Optional[str]  # of the connection, for people; None without one
    problem: Optional[ConnectionLost]  # the latest; None while LISTENING
    lost_at: Optional[float]  # runtime.monotonic() when LISTENING ended; None while it lasts
    connections: int  # made so far


def initial() -> State:
    """Return the state of a listener that has not begun."""
    now = runtime.monotonic()
    return State(CONNECTING, now, None, None, now, 0)


def successor(
    state: State, phase: str, endpoint: Optional[str] = None, problem: Optional[ConnectionLost] = None
) -> State:
    """Return the state that follows.

    :param endpoint: of a new connection; without it the one before, which ends with CONNECTING
    :param problem: what ended the phase before; without it the one before, which ends with LISTENING
    """
    now, listening = runtime.monotonic(), phase == LISTENING
    return State(
        phase,
        state.since if phase == state.phase else now,
        endpoint or (None if phase in (CONNECTING, STOPPED) else state.endpoint),
        None if listening else problem or state.problem,
        None if listening else now if state.lost_at is None else state.lost_at,
        state.connections + (endpoint is not None),
    )


class StateLog:
    """Log the changes of one listener's state: a kind of problem once a minute, and its end if it was logged.

    :param name: the listener's
    :param poll_seconds: how often the table is polled meanwhile
    """

    def __init__(self, name: str, poll_seconds: float) -> None:
        self._name, self._polling = name, f"olling every {poll_seconds:g} s."
        self._throttle = runtime.Throttle()
        self._return_due = True  # whether to log that it is LISTENING

    def change(self, before: State, after: State) -> None:
        """Log a change, if it is worth a line."""
        if after.phase == LISTENING and self._return_due:
            self._return_due, again, delivered = False, "", ""
            if before.problem is not None:
                lasted = after.since - (before.lost_at or after.since)
                again, delivered = " again", f" after {lasted:.2f} s. What was missed is delivered now"
            _logger.info("The %s listener is listening%s on %s%s.", self._name, again, after.endpoint, delivered)
        problem = after.problem
        if problem not in (None, before.problem) and self._throttle.due(problem.cause[:2]):
            self._return_due = True
            text = self._describe(before, problem)
            _logger.log(problem.cause.level, "The %s listener %s", self._name, text)

    def _describe(self, before: State, problem: ConnectionLost) -> str:
        if problem.cause.name in UNVERIFIED:
            return f"does not receive NOTIFYs: {problem.reason}. {problem.cause.remedy} P{self._polling}"
        if before.phase == VERIFYING and problem.endpoint is None:
            return f"cannot be verified: {problem}. {problem.cause.remedy} Retrying; p{self._polling}"
        if before.phase == CONNECTING:
            where = " to" if problem.endpoint else ":"
            return f"cannot connect{where} {problem}. {problem.cause.remedy} Retrying; p{self._polling}"
        return f"lost its connection to {problem}. {problem.cause.remedy} Retrying."
