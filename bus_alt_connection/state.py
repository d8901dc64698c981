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

_logger = logging.getLogger(__package__ + ".listener")

CONNECTING = "connecting"  # no connection
VERIFYING = "verifying"  # it LISTENs; whether NOTIFYs reach it is not proven
LISTENING = "listening"  # NOTIFYs reach it
STOPPED = "stopped"


class State(NamedTuple):
    phase: str
    since: float  # runtime.monotonic() when the phase began
    endpoint: Optional[str] = None  # of the connection, for people; None without one
    problem: Optional[ConnectionLost] = None  # the latest; None while LISTENING
    lost_at: Optional[float] = None  # runtime.monotonic() when LISTENING ended; None while it lasts
    connections: int = 0  # made so far

    def next(
        self, phase: str, now: float, endpoint: Optional[str] = None, problem: Optional[ConnectionLost] = None
    ) -> "State":
        """Return the state that follows.

        :param endpoint: of a new connection; without it the one before, which ends with CONNECTING
        :param problem: what ended the phase before; without it the one before, which ends with LISTENING
        """
        listening = phase == LISTENING
        return State(
            phase,
            self.since if phase == self.phase else now,
            endpoint or (None if phase in (CONNECTING, STOPPED) else self.endpoint),
            None if listening else problem or self.problem,
            None if listening else now if self.lost_at is None else self.lost_at,
            self.connections + (endpoint is not None),
        )


class StateLog:
    """Log the changes of one listener's state.

    A state that goes back and forth is not logged each time: a kind of problem once a minute, and the return from it
    if the problem was logged.

    :param name: the listener's
    :param poll_seconds: how often the table is polled meanwhile
    """

    def __init__(self, name: str, poll_seconds: float) -> None:
        self._name, self._poll_seconds = name, poll_seconds
        self._throttle = runtime.Throttle()
        self._return_due = True  # whether to log that it is LISTENING

    def change(self, before: State, after: State) -> None:
        """Log a change, if it is worth a line."""
        _logger.debug("The %s listener is %s.", self._name, after.phase)
        if after.phase == LISTENING:
            if self._return_due and before.problem is None:
                _logger.info("The %s listener is listening on %s.", self._name, after.endpoint)
            elif self._return_due:
                lasted = after.since - (after.since if before.lost_at is None else before.lost_at)
                again = "The %s listener is listening again on %s after %.2f s. What was missed is delivered now."
                _logger.info(again, self._name, after.endpoint, lasted)
            self._return_due = False
        elif after.problem is not None and after.problem is not before.problem:
            self._log_problem(before, after.problem)

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
        elif before.phase == VERIFYING and before.endpoint is not None and problem.endpoint != before.endpoint:
            text = f"cannot be verified: {problem}. {cause.remedy} Retrying; p{polling}"
        else:
            text = f"lost its connection to {problem}. {cause.remedy} Retrying."
        _logger.log(cause.level, "The %s listener %s", self._name, text)
