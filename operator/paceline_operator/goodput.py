"""Where a training's time went: productive, or lost for a reason; all of it adds up to the wall time. Pure.

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
from paceline_operator import observe
from paceline_operator.memory import exact

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
class Told:
    """What a training says of its own time: seconds by reason since all workers train in this attempt."""

    spent: Mapping[str, float] | None  # None: it trains, and does not say how it spends its time
    step: int
    at: float | None  # Unix time; None for last words, which were said at some time before now

    @property
    def begun(self) -> bool:
        """Whether all workers train, as far as it says."""
        return self.spent is None or sum(self.spent.values()) > 0


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


def account(ledger: Ledger, stage: Stage, now: float, told: Told | None = None) -> Ledger:
    """The ledger after a look that found the training in this stage, and told this of itself."""
    now = round(now, 3)  # times are kept in milliseconds
    trains = Stage.TRAINING in (ledger.stage, stage) or stage is Stage.STOPPED  # at the end: last words
    if told is not None and trains and ledger.stage is not Stage.STOPPED:
        ledger = _listen(ledger, told, now)
    return _turn(ledger, stage, now)


def settled(ledger: Ledger, now: float) -> Ledger:
    """The ledger with the time up to now, where it is clear what that was spent on."""
    if ledger.stage not in UNTIL_IT_TRAINS:
        return ledger
    return _add(ledger, {str(ledger.stage): now - ledger.until}, now)


def _listen(ledger: Ledger, told: Told, now: float) -> Ledger:
    """Account the time that the training tells of."""
    at = now if told.at is None else round(min(told.at, now), 3)
    length = max(0.0, at - ledger.until)
    gain = _gain(ledger, told, length)
    known = sum(gain.values())
    begins = ledger.stage is not Stage.TRAINING
    if known <= 0 or length <= 0:
        return ledger if begins else replace(ledger, told=told.spent or {})
    before = round(max(0.0, length - known), 3) if begins else 0.0
    if told.at is None and not begins:  # what comes after the last words is not in them
        length = round(min(length, known), 3)
    split = _spread(gain, length - before, _repeated_share(ledger, told.step))
    if before:
        split[str(ledger.stage)] = split.get(str(ledger.stage), 0.0) + before
    ledger = _add(ledger, split, ledger.until + length)
    return replace(ledger, stage=Stage.TRAINING, told=told.spent or {}, step=max(ledger.step, told.step))


def _gain(ledger: Ledger, told: Told, length: float) -> Mapping[str, float]:
    """Seconds by reason since the last answer; all of them if the process is another one, which began at 0."""
    if told.spent is None:
        return {PRODUCTIVE: length} if ledger.stage is Stage.TRAINING else {}
    if sum(told.spent.values()) < sum(ledger.told.values()):
        return told.spent
    return {reason: max(0.0, spent - ledger.told.get(reason, 0.0)) for reason, spent in told.spent.items()}


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


def _turn(ledger: Ledger, stage: Stage, now: float) -> Ledger:
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
