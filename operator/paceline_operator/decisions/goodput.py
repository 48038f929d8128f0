"""Goodput: a training's time, productive or lost for a reason; all of it adds up to the wall time. Pure.

The clock runs from `startTime` to `completionTime`, and stands still while the training is suspended. Before and
between attempts the operator itself sees what the time is: pending, startup, restart. Such time is accounted when it is
over, so that a training that waits for hours writes nothing. While the workers train, only the training knows: each
answer tells how its process has spent its time so far, and what is new in it is stretched over the wall time since the
last one. So an answer that does not come loses nothing, and neither does a restart of the operator: the ledger is in
the resource's status.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from paceline_core.goodput import Loss
from paceline_operator.decisions import observe
from paceline_operator.decisions.persisted_state import exact

PRODUCTIVE = "productive"


class Stage(StrEnum):
    """What a training's time is spent on, as the operator sees it."""

    PENDING = Loss.PENDING  # not all pods of the first attempt run, or of the first after a suspension
    STARTUP = Loss.STARTUP  # not all workers train
    RESTART = Loss.RESTART  # from a failure until the next attempt trains
    TRAINING = "training"
    STOPPED = "stopped"  # suspended or finished: the clock stands still


UNTIL_IT_TRAINS = (Stage.PENDING, Stage.STARTUP, Stage.RESTART)


@dataclass(frozen=True)
class TimeSpent:
    """How a training has spent its time, by its own account, since all workers train in this attempt."""

    seconds: Mapping[str, float] | None  # by reason; None: it trains, and does not say how it spends its time
    step: int
    at: float | None  # Unix time; None for a termination message, which was written at some time before now

    @property
    def begun(self) -> bool:
        """Whether all workers train, as far as it says."""
        return self.seconds is None or sum(self.seconds.values()) > 0


@dataclass(frozen=True)
class Ledger:
    """The time until `until`, in seconds by reason and productive, and what the time since then is."""

    until: float
    stage: Stage = Stage.PENDING
    seconds: Mapping[str, float] = field(default_factory=dict)
    told: Mapping[str, float] = field(default_factory=dict)  # in this attempt
    step: int = 0  # of this attempt
    repeated: int = 0  # steps of earlier attempts, which have to be made again

    @property
    def total(self) -> float:
        """All accounted seconds."""
        return sum(self.seconds.values())

    @property
    def productive(self) -> float:
        """Seconds in which the training went on."""
        return self.seconds.get(PRODUCTIVE, 0.0)

    @property
    def ratio(self) -> float | None:
        """The productive share; None before any time has passed."""
        return self.productive / self.total if self.total > 0 else None

    def to_status(self) -> dict[str, Any]:
        """For the status."""
        lost = {str(reason): self.seconds[reason] for reason in Loss if self.seconds.get(reason)}
        shares = {} if self.ratio is None else {"ratio": round(self.ratio, 4), "summary": f"{self.ratio:.0%}"}
        times = {"productiveSeconds": self.productive, "lostSeconds": lost, "accountedTime": exact(self.until)}
        attempt = {"told": dict(self.told), "step": self.step, "repeatedSteps": self.repeated}
        return {**shares, **times, "stage": str(self.stage), **attempt}

    @classmethod
    def from_status(cls, status: Mapping[str, Any]) -> "Ledger":
        """Read what `to_status` wrote."""
        return cls(
            until=observe.seconds(status["accountedTime"]) or 0.0,
            stage=Stage(status["stage"]),
            seconds={PRODUCTIVE: status["productiveSeconds"], **status["lostSeconds"]},
            told=status["told"],
            step=status["step"],
            repeated=status["repeatedSteps"],
        )


def account(ledger: Ledger, stage: Stage, now: float, time_spent: TimeSpent | None = None) -> Ledger:
    """The ledger when the training is found in this stage, and has told this of its time."""
    now = round(now, 3)  # times are kept in milliseconds
    trains = Stage.TRAINING in (ledger.stage, stage) or stage is Stage.STOPPED  # at the end: the termination message
    if time_spent is not None and trains and ledger.stage is not Stage.STOPPED:
        ledger = _account_told(ledger, time_spent, now)
    return _enter_stage(ledger, stage, now)


def settled(ledger: Ledger, now: float) -> Ledger:
    """The ledger with the time up to now, where it is clear what that was spent on."""
    if ledger.stage not in UNTIL_IT_TRAINS:
        return ledger
    return _add(ledger, {str(ledger.stage): now - ledger.until}, now)


def _account_told(ledger: Ledger, time_spent: TimeSpent, now: float) -> Ledger:
    """Account the time that the training tells of."""
    at = now if time_spent.at is None else round(min(time_spent.at, now), 3)
    length = max(0.0, at - ledger.until)
    gain = _gain(ledger, time_spent, length)
    known = sum(gain.values())
    begins = ledger.stage is not Stage.TRAINING
    if known <= 0 or length <= 0:
        return ledger if begins else replace(ledger, told=time_spent.seconds or {})
    before = round(max(0.0, length - known), 3) if begins else 0.0
    if time_spent.at is None and not begins:  # what comes after the termination message is not in it
        length = round(min(length, known), 3)
    split = _spread(gain, length - before, _repeated_share(ledger, time_spent.step))
    if before:
        split[str(ledger.stage)] = split.get(str(ledger.stage), 0.0) + before
    ledger = _add(ledger, split, ledger.until + length)
    return replace(ledger, stage=Stage.TRAINING, told=time_spent.seconds or {}, step=max(ledger.step, time_spent.step))


def _gain(ledger: Ledger, time_spent: TimeSpent, length: float) -> Mapping[str, float]:
    """Seconds by reason since the last answer; all of them if the process is another one, which began at 0."""
    if time_spent.seconds is None:
        return {PRODUCTIVE: length} if ledger.stage is Stage.TRAINING else {}
    if sum(time_spent.seconds.values()) < sum(ledger.told.values()):
        return time_spent.seconds
    return {reason: max(0.0, spent - ledger.told.get(reason, 0.0)) for reason, spent in time_spent.seconds.items()}


def _repeated_share(ledger: Ledger, step: int) -> float:
    """The share of the steps since the last answer that an earlier attempt had made already."""
    if ledger.step >= ledger.repeated:
        return 0.0
    if step <= ledger.repeated:
        return 1.0
    return (ledger.repeated - ledger.step) / (step - ledger.step)


def _spread(gain: Mapping[str, float], length: float, repeated: float) -> dict[str, float]:
    """Seconds split as they were gained, in milliseconds that add up; repeated steps are rework, whatever else."""
    known = sum(gain.values())
    split = {reason: round((1 - repeated) * length * part / known, 3) for reason, part in gain.items()}
    split[Loss.REWORK] = split.get(Loss.REWORK, 0.0) + round(repeated * length, 3)
    largest = max(split, key=lambda reason: split[reason])
    split[largest] += length - sum(split.values())
    return split


def _enter_stage(ledger: Ledger, stage: Stage, now: float) -> Ledger:
    """The ledger in another stage; the time since `until` is what the stage before made of it."""
    if stage in (Stage.PENDING, Stage.STARTUP) and ledger.stage in (Stage.RESTART, Stage.TRAINING):
        return ledger  # a restart lasts until it trains; a worker replaced alone does not stop the others
    if stage is ledger.stage:
        return ledger
    if ledger.stage is Stage.STOPPED:
        return replace(ledger, stage=stage, until=max(ledger.until, now))
    if ledger.stage is not Stage.TRAINING:
        return replace(settled(ledger, now), stage=stage)
    # What nobody told of is gone with the attempt, or came after the last step.
    reason = Loss.RESTART if stage is Stage.RESTART else Loss.SHUTDOWN
    ledger = _add(ledger, {reason: now - ledger.until}, now)
    return replace(ledger, stage=stage, told={}, step=0, repeated=max(ledger.repeated, ledger.step))


def _add(ledger: Ledger, split: Mapping[str, float], until: float) -> Ledger:
    """The ledger with these seconds more; a clock that went back changes nothing."""
    total = {**ledger.seconds}
    for reason, length in split.items():
        total[reason] = round(total.get(reason, 0.0) + max(0.0, length), 3)
    return replace(ledger, seconds=total, until=round(max(until, ledger.until), 3))
