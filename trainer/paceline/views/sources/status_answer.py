"""The answer of /status as a model: checked, because it may come from a pod, and typed for all that shows it."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from paceline.terminal import printable
from paceline_core.errors import SpecError

MOST_ROWS = 40  # of workers
MOST_WORKERS, MOST_NAMES = 50_000, 1000  # that an answer may name
GREATEST, GREATEST_COUNT = 1e12, 2**53  # beyond what any clock or counter of a training shows


def _known(value: Any) -> Any:
    """A figure that nobody can know, such as a mean of nothing, is not known."""
    return None if isinstance(value, float) and not abs(value) <= GREATEST else value


Clean = Annotated[str, AfterValidator(printable)]
Number = Annotated[float, Field(ge=-GREATEST, le=GREATEST, allow_inf_nan=False)]
NumberOrNone = Annotated[Number | None, BeforeValidator(_known)]
Count = Annotated[int, Field(ge=0, le=GREATEST_COUNT)]
Names: Any = Field(default_factory=dict, max_length=MOST_NAMES)


class Answer(BaseModel):
    """Part of an answer; fields that this version does not know are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class VerdictAnswer(Answer):
    """A worker that makes the others wait."""

    worker: Count
    lag_share: Number  # of all lag
    lag_seconds: Number  # in a round
    round_seconds: Number
    cost: NumberOrNone = None  # share of the throughput
    cause: Clean | None = None
    since: NumberOrNone = None  # Unix time


class GoodputAnswer(Answer):
    """Where the time went: `seconds` is what was productive and what was lost."""

    seconds: Number
    productive: Number
    lost: dict[Clean, Number] = Names


class OddLossAnswer(Answer):
    """A loss that was not finite: the first of a training or, without `worker`, of that worker."""

    step: int
    value: Clean
    worker: int | None = None


class WorkerAnswer(Answer):
    """One worker; None is what is not known yet."""

    worker: Count
    state: Clean = "waiting"
    step: Count = 0
    total_steps: Count | None = None
    loss: float | None = None
    step_seconds: NumberOrNone = None
    latency_seconds: NumberOrNone = None
    lag_seconds: NumberOrNone = None
    lag_share: NumberOrNone = None
    last_arrivals: Count | None = None
    staleness: NumberOrNone = None
    applied: Count = 0
    rejected: Count = 0
    rejected_by_reason: dict[Clean, Count] = Names
    phases: dict[Clean, Number] = Names
    reported: dict[Clean, float | None] = Names  # None is a number that is not finite
    loss_not_finite: OddLossAnswer | None = None
    verdicts: tuple[Clean, ...] = Field(default=(), max_length=MOST_NAMES)
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
    version: Count = 0
    finished: bool = False
    uptime_seconds: Number = 0.0
    missing: tuple[Count, ...] = Field(default=(), max_length=MOST_WORKERS)
    level: Clean | None = None
    workers: tuple[WorkerAnswer, ...] = Field(min_length=1, max_length=MOST_WORKERS)
    verdict: VerdictAnswer | None = None
    overall_verdict: VerdictAnswer | None = None
    goodput: GoodputAnswer | None = None
    loss_not_finite: OddLossAnswer | None = None
    weights_not_finite: Clean | None = None  # the name of a tensor

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
        path = ".".join(printable(str(part)) for part in first["loc"])
        raise SpecError([f"{where}: answered something that is no status ({path}: {first['msg']})"]) from None


def selection(
    workers: Sequence[WorkerAnswer], by_lag: bool, rows: int = MOST_ROWS
) -> tuple[list[WorkerAnswer], list[WorkerAnswer]]:
    """The workers to show, and the rest. When not all find room the worst do, whatever the order.

    The worst: lost ones, then by lag, then (where nobody waits for all there is none) by the time of a step.
    """
    ordered = sorted(workers, key=lambda w: (w.state != "lost", -(w.lag_seconds or 0.0), -(w.step_seconds or 0.0)))
    shown, rest = ordered[:rows], ordered[rows:]
    return (shown if by_lag else sorted(shown, key=lambda w: w.worker)), rest
