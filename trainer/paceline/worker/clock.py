"""Where a step's wall time goes. Every moment belongs to exactly one phase, so that the phases add up to the whole."""

import time
from collections import defaultdict


class PhaseClock:
    """Charges time to the phase that is current. `other` is the script's own work between Paceline's marks."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._phase, self._since = "other", time.perf_counter()
        self._began = self._since

    @property
    def phase(self) -> str:
        """The current phase."""
        return self._phase

    def enter(self, phase: str, at: float | None = None) -> None:
        """Begin a phase, now or at an earlier moment (of time.perf_counter) that lies within the current one."""
        now = time.perf_counter() if at is None else max(at, self._since)
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def so_far(self, *phases: str) -> float:
        """Seconds charged to these phases since the last step's end."""
        return sum(self._seconds[p] for p in phases)

    def end_step(self) -> tuple[float, dict[str, float]]:
        """The wall time since the last step's end, and its parts."""
        self.enter("other")
        wall, phases = self._since - self._began, dict(self._seconds)
        self._began = self._since
        self._seconds.clear()
        return wall, phases
