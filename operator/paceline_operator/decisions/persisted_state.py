"""The operator's state of a training, persisted in the resource's status: a restart loses none of it. Pure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from paceline_operator.decisions.observe import seconds

KEPT_FAILURES = 10  # beside those whose pods still exist
CALM_SECONDS = 600.0  # without a failure, after which delays begin anew
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 1.0, 300.0
TRAINING = "training"  # the scope of a failure after which everything begins anew


@dataclass(frozen=True)
class Failure:
    """A pod that failed or was lost, or a training that did."""

    scope: str  # TRAINING, or the replica that is replaced alone
    replica: str
    uid: str  # of the pod; empty when it was gone before it was seen
    attempt: int
    reason: str
    message: str
    time: float
    counted: bool  # against backoffLimit; what the cluster does to pods is not

    def to_json(self) -> dict[str, Any]:
        """For the status."""
        return {**self.__dict__, "time": text(self.time)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Failure":
        """From the status."""
        return cls(**{**value, "time": seconds(value["time"]) or 0.0})


@dataclass(frozen=True)
class Delay:
    """Failures in a row of one scope, and when it may be tried again."""

    count: int
    until: float


@dataclass(frozen=True)
class PersistedState:
    """Written before it is acted upon. Times are seconds since the epoch."""

    start: float | None = None  # first pods, or the resumption; activeDeadlineSeconds counts from it
    attempt: int = 0
    attempt_start: float = 0.0
    formed: bool = False  # all pods of this attempt have existed
    joined: bool = False  # all workers of this attempt have joined
    trained: bool = False  # those of an earlier attempt have
    ended: frozenset[int] = frozenset()  # workers of this attempt whose scripts have ended well
    ended_time: float | None = None  # of the last of them
    suspended: bool = False
    restarts: int = 0  # that count
    restarts_by_reason: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # role -> reason; all of them
    failures: tuple[Failure, ...] = ()
    delays: Mapping[str, Delay] = field(default_factory=dict)
    result: str | None = None  # Succeeded or Failed
    reason: str = ""  # of the result
    message: str = ""
    completion: float | None = None
    generation: int = 0  # of the resource, when it finished

    @classmethod
    def from_status(cls, status: Mapping[str, Any]) -> "PersistedState":
        """Read what `to_status` wrote."""
        delays = {d["scope"]: Delay(d["count"], seconds(d["until"]) or 0.0) for d in status.get("delays", ())}
        result = status.get("phase") if status.get("completionTime") else None
        return cls(
            start=seconds(status.get("startTime")),
            attempt=status.get("attempt", 0),
            attempt_start=seconds(status.get("attemptTime")) or 0.0,
            formed=status.get("formed", False),
            joined=status.get("joined", False),
            trained=status.get("trained", False),
            ended=numbers(status.get("endedWorkers", "")),
            ended_time=seconds(status.get("endedTime")),
            suspended=status.get("phase") == "Suspended",
            restarts=status.get("restarts", 0),
            restarts_by_reason=status.get("restartsByReason", {}),
            failures=tuple(Failure.from_json(f) for f in status.get("failures", ())),
            delays=delays,
            result=result,
            reason=status.get("reason", "") if result else "",
            message=status.get("message", "") if result else "",
            completion=seconds(status.get("completionTime")),
            generation=status.get("observedGeneration", 0) if result else 0,
        )

    def to_status(self) -> dict[str, Any]:
        """The part of the status that is this state; phase, reason and message are set from the decision."""
        out: dict[str, Any] = {
            "attempt": self.attempt,
            "formed": self.formed,
            "joined": self.joined,
            "trained": self.trained,
            "endedWorkers": ranges(self.ended),
            "restarts": self.restarts,
            "restartsByReason": {role: dict(counts) for role, counts in self.restarts_by_reason.items()},
            "failures": [f.to_json() for f in self.failures],
            "delays": [{"scope": s, "count": d.count, "until": text(d.until)} for s, d in self.delays.items()],
        }
        times = {
            "startTime": self.start,
            "attemptTime": self.attempt_start or None,
            "endedTime": self.ended_time,
            "completionTime": self.completion,
        }
        return out | {name: text(value) for name, value in times.items() if value is not None}

    def failed(self, failure: Failure, existing: set[str]) -> "PersistedState":
        """Record a failure, and when its scope may be tried again; `existing` are the uids of the pods there are."""
        before = self.delays.get(failure.scope)
        calm = before is None or failure.time - before.until > CALM_SECONDS
        count = 1 if before is None or calm else before.count + 1
        delay = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** (count - 1))
        older = [f for f in self.failures if f.uid in existing]
        recent = [f for f in self.failures if f.uid not in existing][-KEPT_FAILURES:]
        failures = sorted([*older, *recent, failure], key=lambda f: f.time)
        return replace(
            self,
            failures=tuple(failures),
            restarts=self.restarts + failure.counted,
            delays={**self.delays, failure.scope: Delay(count, failure.time + delay)},
        )

    def restarted(self, role: str, reason: str) -> "PersistedState":
        """Count what begins anew because of a failure of a worker or server; `failures` keeps the newest alone."""
        counts = self.restarts_by_reason.get(role, {})
        counts = {**counts, reason: counts.get(reason, 0) + 1}
        return replace(self, restarts_by_reason={**self.restarts_by_reason, role: counts})

    def has_failure_of(self, uid: str) -> bool:
        """Whether the failure of this pod is recorded."""
        return any(f.uid == uid for f in self.failures)

    @property
    def broken(self) -> Failure | None:
        """The failure that ended this attempt."""
        return next((f for f in self.failures if f.scope == TRAINING and f.attempt == self.attempt), None)

    def next_attempt(self, now: float) -> "PersistedState":
        """Begin anew."""
        anew = replace(self, attempt=self.attempt + 1, attempt_start=now, suspended=False)
        return replace(
            anew, trained=self.trained or self.joined, formed=False, joined=False, ended=frozenset(), ended_time=None
        )


def ranges(of: Iterable[int]) -> str:
    """Numbers in few letters: 0-3,7."""
    runs: list[list[int]] = []
    for number in sorted(of):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def numbers(written: str) -> frozenset[int]:
    """The numbers of which `ranges` wrote."""
    ends = [run.partition("-") for run in written.split(",") if run]
    return frozenset(n for a, _, b in ends for n in range(int(a), int(b or a) + 1))


def whole(time: float) -> int:
    """A time as the status keeps it: whole seconds, rounded up so that waits are never cut short."""
    return math.ceil(time)


def text(time: float) -> str:
    """A time as Kubernetes writes it, in whole seconds."""
    return datetime.fromtimestamp(whole(time), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def exact(time: float) -> str:
    """A time with its milliseconds."""
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
