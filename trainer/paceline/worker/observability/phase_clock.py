"""Where a step's wall time goes. Every moment belongs to exactly one phase, so that the phases add up to the whole."""

import time
from collections.abc import Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """A step that has ended: its phases in order, each with its beginning (time.perf_counter), and its end."""

    marks: Sequence[tuple[str, float]]
    end: float

    @property
    def wall(self) -> float:
        """Seconds since the step before ended."""
        return self.end - self.marks[0][1]

    def phases(self) -> dict[str, float]:
        """Seconds in each phase; they add up to `wall`."""
        out: dict[str, float] = {}
        for (phase, begin), (_, end) in zip(self.marks, [*self.marks[1:], ("", self.end)], strict=True):
            out[phase] = out.get(phase, 0.0) + end - begin
        return out


class PhaseClock:
    """Charges time to the phase that is current. `other` is the script's own work between Paceline's marks."""

    def __init__(self) -> None:
        self.phase, self._since = "other", time.perf_counter()
        self._marks = [(self.phase, self._since)]

    def enter(self, phase: str, at: float | None = None) -> None:
        """Begin a phase, now or at an earlier moment (of time.perf_counter) that lies within the current one."""
        now = time.perf_counter()
        self._since = now if at is None else min(now, max(at, self._since))
        self.phase = phase
        self._marks.append((phase, self._since))

    def end_step(self) -> Step:
        """End the step; the next begins at once."""
        self.enter("other")
        step = Step(self._marks[:-1], self._since)
        self._marks = [("other", self._since)]
        return step
