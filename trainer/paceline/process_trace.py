"""What a process did when: the newest steps or updates, kept for /trace and, at the end, for the run folder."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paceline import json_text
from paceline.files import private_writing

KEPT = 2000  # steps, or updates
FOLDER = "traces"


@dataclass(frozen=True)
class Update:
    """One update of a shard; times of time.monotonic."""

    version: int
    begin: float
    end: float
    waited: float  # seconds between the decision and the beginning
    pushes: Sequence[tuple[int, int, float]] = ()  # worker, step, when its gradient was here whole


@dataclass
class ProcessTrace:
    """Safe to write in one thread and read in another. Times come from one steady clock and go out as Unix time."""

    replica: str
    steady_now: float  # what that clock shows now
    offset: float = 0.0  # seconds to add to get the clock of server 0 or the coordinator
    _steps: deque[tuple[int, Sequence[tuple[str, float]], float]] = field(default_factory=lambda: deque(maxlen=KEPT))
    _updates: deque[Update] = field(default_factory=lambda: deque(maxlen=KEPT))

    def __post_init__(self) -> None:
        self._epoch = time.time() - self.steady_now

    def step(self, number: int, marks: Sequence[tuple[str, float]], end: float) -> None:
        """A step: the phases in order, each with its beginning, and the end of the last."""
        self._steps.append((number, marks, end))

    def update(self, update: Update) -> None:
        """An update of a shard."""
        self._updates.append(update)

    def to_json(self) -> dict[str, Any]:
        """Everything that is kept."""
        return {
            "replica": self.replica,
            "offset": self.offset,
            "spans": [span for step in list(self._steps) for span in self._spans(*step)],
            "updates": [self._update(u) for u in list(self._updates)],
        }

    def write(self, folder: str | None) -> None:
        """Leave it in the run folder, if there is one. Raises OSError."""
        if folder is not None:
            path = Path(folder, FOLDER, f"{self.replica}.json")
            path.parent.mkdir(mode=private_writing.FOLDER, exist_ok=True)
            private_writing.replace(path, json_text.dumps(self.to_json()).encode())

    def _spans(self, number: int, marks: Sequence[tuple[str, float]], end: float) -> list[Sequence[Any]]:
        ends = [begin for _, begin in marks[1:]] + [end]
        return [
            (phase, self._unix(begin), self._unix(until), number)
            for (phase, begin), until in zip(marks, ends, strict=True)
            if until > begin
        ]

    def _update(self, it: Update) -> Sequence[Any]:
        pushes = [(worker, step, self._unix(arrived)) for worker, step, arrived in it.pushes]
        return (it.version, self._unix(it.begin), self._unix(it.end), pushes)

    def _unix(self, at: float) -> float:
        return round(self._epoch + at, 6)
