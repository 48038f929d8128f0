"""Where the time of a training went: productive, or lost for a reason. Pure; the parts add up to the whole.

Before the first update all time is startup, after the last it is shutdown. In between each stretch of time is divided
by shares: what the typical worker waited for the last one (straggler), what it waited for its data (data), and, in an
asynchronous training, what was spent on gradients that were rejected (rework). The rest is productive.
"""

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum


class Loss(StrEnum):
    """Why time was lost."""

    PENDING = "pending"  # no machine yet
    STARTUP = "startup"  # processes begin, and join
    RESTART = "restart"  # from a failure until all train again
    REWORK = "rework"  # steps that had been made before, or whose gradients were rejected
    CHECKPOINT = "checkpoint"
    STRAGGLER = "straggler"
    DATA = "data"
    SHUTDOWN = "shutdown"  # after the last step


class Goodput:
    """Divides the time from `started` on; times are seconds on one clock."""

    def __init__(self, started: float) -> None:
        self.productive, self.lost = 0.0, Counter[str]()
        self._until = started  # all time before is accounted for
        self._begun = False

    def trained(self, at: float, shares: Mapping[Loss, float]) -> None:
        """Updates were made until `at`; `shares` of the time since the last call were lost. The first ends startup."""
        seconds, self._until = at - self._until, at
        if not self._begun:
            self._begun = True
            self.lost[Loss.STARTUP] += seconds  # type: ignore[assignment]
            return
        left = seconds
        for reason, share in shares.items():
            part = min(left, seconds * max(0.0, share))
            self.lost[reason] += part  # type: ignore[assignment]
            left -= part
        self.productive += left

    def ended(self, at: float) -> None:
        """The training is over: what came after the last update is shutdown, or startup if there was none."""
        reason = Loss.SHUTDOWN if self._begun else Loss.STARTUP
        self.lost[reason] += at - self._until  # type: ignore[assignment]
        self._until = at

    def to_json(self) -> dict[str, object]:
        """For /status and result.json."""
        lost = {str(reason): seconds for reason, seconds in self.lost.items() if seconds > 0}
        return {"seconds": self.productive + sum(lost.values()), "productive": self.productive, "lost": lost}
