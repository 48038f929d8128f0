"""A training's answers: /status while it runs, the termination message after that. Pods are not trusted. Pure.

What is needed and wrong raises KeyError, TypeError, ValueError, AttributeError or ArithmeticError (`WRONG`), and the
answer is not used; what is merely useful and wrong or missing is left out.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paceline_core import finiteness
from paceline_core.attribution import Cause
from paceline_core.goodput import Loss
from paceline_operator.decisions.goodput import PRODUCTIVE, TimeSpent
from paceline_operator.decisions.observe import Pod

WRONG = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)
REPORTED, NAME_LENGTH = 20, 100  # values that the script reported
NOT_FINITE = ("nan", "inf", "-inf")  # as texts: JSON has no such numbers
GREATEST_COUNT = 2**53  # greater whole numbers are not exact in JSON
GREATEST_SECONDS = 1e11  # of a time, or of a sum of times; the year 5138


@dataclass(frozen=True)
class Straggler:
    """The worker that makes the others wait; None: not told."""

    worker: str
    share: float  # of all waiting
    lag: float  # seconds in each round
    round: float | None = None  # seconds
    cost: float | None = None  # share of the throughput
    cause: Cause | None = None
    since: float | None = None  # Unix time


@dataclass(frozen=True)
class SlowWorker:
    """A worker that is slower than the others, which do not wait for it."""

    worker: str
    stale: bool
    cause: Cause | None = None


@dataclass(frozen=True)
class CheckpointTold:
    """What is saved of a training; None: nothing is, or it is not told."""

    step: int | None = None  # of the newest checkpoint: updates made
    time: float | None = None  # Unix time
    updates_since: int | None = field(default=None, compare=False)  # change all the time, and alone are no news
    failed: int = 0  # checkpoints that could not be saved, in this attempt
    resumed_from: int | None = None  # step of the checkpoint with which the attempt began


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is, and who is slow."""

    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    reported: Mapping[str, float] | None = None
    straggler: Straggler | None = None
    slow_worker: SlowWorker | None = None
    training: bool = False  # all workers have joined
    checkpoint: CheckpointTold | None = None
    time_spent: TimeSpent | None = field(default=None, compare=False)  # changes all the time, and alone is no news
    replaceable: frozenset[int] = frozenset()  # workers in whose place another can go on where they were

    @classmethod
    def from_status(cls, status: Mapping[str, Any], at: float) -> "TrainingProgress":
        """From what /status answered at some time."""
        workers = status["workers"]
        step = min((_count(w["step"]) for w in workers if w["state"] != "lost"), default=0)
        return cls(
            step=step,
            total_steps=max((_count(w["total_steps"]) for w in workers if w["total_steps"]), default=None),
            loss=_mean([w["loss"] for w in workers if w["loss"] is not None]),
            reported=_reported(item for w in workers for item in w["reported"].items()),
            straggler=_straggler(status["verdict"]),
            slow_worker=_slow_worker(workers),
            training=not status["missing"],
            checkpoint=_checkpoint(status.get("checkpoint")),
            time_spent=TimeSpent(_spent(status.get("goodput")), step, at),
            replaceable=frozenset(_count(w["worker"]) for w in workers if w.get("kept_step") is not None),
        )

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> "TrainingProgress":
        """From the termination message of shard 0 or the coordinator."""
        step = _count(summary["step"])
        return cls(
            step=step,
            total_steps=step,
            loss=None if summary["loss"] is None else _mean([summary["loss"]]),
            reported=_reported(summary["reported"].items()),
            straggler=_straggler(summary["verdict"]),
            training=True,
            checkpoint=_checkpoint(summary.get("checkpoint")),
            time_spent=TimeSpent(_spent(summary.get("goodput")), step, None),
        )


def final_progress(pods: Sequence[Pod]) -> TrainingProgress | None:
    """The progress in the termination message of the shard 0 or coordinator among these pods; None without one."""
    for pod in pods:
        if not pod.is_worker and pod.ordinal == 0 and pod.end and "summary" in pod.end.details:
            try:
                found = TrainingProgress.from_summary(pod.end.details["summary"])
                return replace(found, total_steps=None) if pod.stopped else found  # it was told to end in the middle
            except WRONG:
                return None
    return None


def checkpoint_at_failure(pods: Sequence[Pod]) -> CheckpointTold | None:
    """What the shard 0 or coordinator among these pods left of checkpoints when it failed, or was told to end."""
    details = next((p.end.details for p in pods if p.end and not p.is_worker and p.ordinal == 0), {})
    summary = details.get("summary")
    return _checkpoint((summary if isinstance(summary, Mapping) else details).get("checkpoint"))


def not_finite(pods: Sequence[Pod]) -> list[str]:
    """What the shard 0 or coordinator among these pods told of a loss, or of weights, that were not finite."""
    summary = next((p.end.details.get("summary") for p in pods if p.end and not p.is_worker and p.ordinal == 0), None)
    if not isinstance(summary, Mapping):
        return []
    loss, weights = summary.get("loss_not_finite"), summary.get("weights_not_finite")
    said = []
    try:
        if loss is not None and loss["value"] in NOT_FINITE:
            said.append(finiteness.of_loss(_count(loss["worker"]), _count(loss["step"]), loss["value"]))
    except WRONG:
        pass  # not what Paceline writes
    if isinstance(weights, str):
        said.append(finiteness.of_weights("".join(c for c in weights[:NAME_LENGTH] if c.isprintable())))
    return said


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= GREATEST_COUNT:
        raise ValueError(f"{str(value)[:NAME_LENGTH]!r} is no count")
    return value


def _figure(value: Any, greatest: float) -> float | None:
    """A number from 0 on; None for anything else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 <= value <= greatest else None


def _needed(value: Any, greatest: float) -> float:
    found = _figure(value, greatest)
    if found is None:
        raise ValueError(f"{str(value)[:NAME_LENGTH]!r} is no number from 0 to {greatest:g}")
    return found


def _mean(values: Sequence[Any]) -> float | None:
    """The mean; None without values, or when it is not finite: JSON has no NaN."""
    mean = statistics.fmean(float(v) for v in values) if values else math.nan
    return mean if math.isfinite(mean) else None


def _reported(items: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """Reported values that can be shown (None is one that is not finite); the loss has a place of its own."""
    found = {k: float(v) for k, v in items if k != "loss" and len(k) <= NAME_LENGTH and v is not None}
    return dict([(k, v) for k, v in found.items() if math.isfinite(v)][:REPORTED])


def _straggler(verdict: Mapping[str, Any] | None) -> Straggler | None:
    if not verdict:
        return None
    return Straggler(
        worker=_name(verdict["worker"]),
        share=_needed(verdict["lag_share"], 1),
        lag=_needed(verdict["lag_seconds"], GREATEST_SECONDS),
        round=_figure(verdict.get("round_seconds"), GREATEST_SECONDS),
        cost=_figure(verdict.get("cost"), 1),
        cause=_cause(verdict.get("cause")),
        since=_figure(verdict.get("since"), GREATEST_SECONDS) or None,
    )


def _checkpoint(told: Any) -> CheckpointTold | None:
    if not isinstance(told, Mapping):
        return None
    try:
        return CheckpointTold(
            step=_count_or_none(told.get("step")),
            time=_figure(told.get("time"), GREATEST_SECONDS),
            updates_since=_count_or_none(told.get("updates_since")),
            failed=_count(told.get("failed", 0)),
            resumed_from=_count_or_none(told.get("resumed_from")),
        )
    except WRONG:
        return None


def _count_or_none(value: Any) -> int | None:
    return None if value is None else _count(value)


def _slow_worker(workers: Sequence[Mapping[str, Any]]) -> SlowWorker | None:
    """The slowest of those that are called slow."""
    named = [w for w in workers if isinstance(w.get("verdicts"), list) and "slow" in w["verdicts"]]
    if not named:
        return None
    found = max(named, key=lambda w: _figure(w.get("step_seconds"), GREATEST_SECONDS) or 0.0)
    return SlowWorker(_name(found["worker"]), "stale" in found["verdicts"], _cause(found.get("cause")))


def _name(worker: Any) -> str:
    return f"worker-{_count(worker)}"


def _cause(cause: Any) -> Cause | None:
    return Cause(cause) if cause in list(Cause) else None


def _spent(goodput: Any) -> dict[str, float] | None:
    """Seconds by reason since all workers train; what was before, the operator sees for itself."""
    if not isinstance(goodput, dict) or not isinstance(goodput.get("lost"), dict):
        return None
    told: dict[str, Any] = {str(reason): goodput["lost"].get(reason, 0.0) for reason in Loss}
    told[PRODUCTIVE] = goodput.get("productive")
    found = {reason: _figure(value, GREATEST_SECONDS) for reason, value in told.items()}
    if None in found.values():
        return None
    return {r: round(v, 3) for r, v in found.items() if v and r not in (Loss.PENDING, Loss.STARTUP)}
