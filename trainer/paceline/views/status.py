"""The answer of /status as a model: checked, because it may come from a pod, and typed for all that shows it."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from paceline_core.errors import SpecError

LONGEST = 500  # characters of a text that is shown
MOST_ROWS = 40  # of workers


def printable(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in text[:LONGEST])


Clean = Annotated[str, AfterValidator(printable)]


class Answer(BaseModel):
    """Part of an answer; fields that this version does not know are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Verdict(Answer):
    """A worker that makes the others wait."""

    worker: int
    lag_share: float  # of all lag
    lag_seconds: float  # in a round
    round_seconds: float
    cost: float | None = None  # share of the throughput
    cause: Clean | None = None
    since: float | None = None  # Unix time


class Goodput(Answer):
    """Where the time went: `seconds` is what was productive and what was lost."""

    seconds: float
    productive: float
    lost: dict[Clean, float] = Field(default_factory=dict)


class Worker(Answer):
    """One worker; None is what is not known yet."""

    worker: int
    state: Clean = "waiting"
    step: int = 0
    total_steps: int | None = None
    loss: float | None = None
    step_seconds: float | None = None
    latency_seconds: float | None = None
    lag_seconds: float | None = None
    lag_share: float | None = None
    last_arrivals: int | None = None
    staleness: float | None = None
    applied: int = 0
    rejected: int = 0
    rejected_by_reason: dict[Clean, int] = Field(default_factory=dict)
    phases: dict[Clean, float] = Field(default_factory=dict)
    reported: dict[Clean, float] = Field(default_factory=dict)
    verdicts: tuple[Clean, ...] = ()
    cause: Clean | None = None

    @property
    def name(self) -> str:
        """The replica's name."""
        return f"worker-{self.worker}"


class Status(Answer):
    """How far a training is, and who makes whom wait."""

    training: Clean
    topology: Clean = ""
    strategy: Clean
    version: int = 0
    finished: bool = False
    uptime_seconds: float = 0.0
    missing: tuple[int, ...] = ()
    level: Clean | None = None
    workers: tuple[Worker, ...] = Field(min_length=1)
    verdict: Verdict | None = None
    overall_verdict: Verdict | None = None
    goodput: Goodput | None = None

    @property
    def eta_seconds(self) -> float | None:
        """When the slowest worker will be done, in seconds from now; None when that is not known."""
        left = [
            (w.total_steps - w.step) * w.step_seconds
            for w in self.workers
            if w.total_steps and w.step_seconds and w.state == "training"
        ]
        return max(left) if left and max(left) > 0 else None


def read(data: Any, where: str) -> Status:
    """The status in an answer of `where`. Raises SpecError when it is none."""
    try:
        return Status.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise SpecError([f"{where}: answered something that is no status ({path}: {first['msg']})"]) from None


def selection(workers: Sequence[Worker], by_lag: bool, rows: int = MOST_ROWS) -> tuple[list[Worker], list[Worker]]:
    """The workers to show, and the rest. When not all find room the worst do, whatever the order.

    The worst: lost ones, then by lag, then (asynchronous workers have none) by the time of a step.
    """
    ordered = sorted(workers, key=lambda w: (w.state != "lost", -(w.lag_seconds or 0.0), -(w.step_seconds or 0.0)))
    shown, rest = ordered[:rows], ordered[rows:]
    return (shown if by_lag else sorted(shown, key=lambda w: w.worker)), rest
