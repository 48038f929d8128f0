"""What a place where trainings are can tell: how one is now, and what its processes did."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from paceline.views.sources.status_answer import GoodputAnswer, Status


@dataclass(frozen=True)
class Snapshot:
    """What is known of a training at one moment."""

    phase: str
    message: str = ""
    status: Status | None = None
    goodput: GoodputAnswer | None = None  # of its whole life, restarts included, where somebody keeps it
    ended: bool = False  # nothing will change
    lost: bool = False  # nobody answers who could know


@dataclass(frozen=True)
class Process:
    """A process that can be asked for its trace; `trace` raises SpecError."""

    replica: str
    trace: Callable[[], Any]


class TrainingSource(Protocol):
    """A training that can be shown."""

    period: float  # seconds between two snapshots

    @property
    def name(self) -> str:
        """As people call it."""

    @property
    def trace_file(self) -> Path:
        """Where its trace is written to by default."""

    def snapshot(self) -> Snapshot:
        """How it is now. Raises SpecError when it cannot be known."""

    def processes(self) -> Sequence[Process]:
        """The processes that have a trace. Raises SpecError when there are none."""
