"""Who makes whom wait, since when, why, and what it costs. Pure: times come in as seconds on one clock.

*Arrival lag* of a worker in a round: how long after the median arrival its gradient arrived. In a ring nobody receives,
so a worker's lag is how much less than the median it waited for the others in the same step. *Cost* of a worker: the
share of the time that would be saved if it were as quick as the next slowest, which is the time between the last
arrival and the one before, in the rounds in which it came last.
"""

import statistics
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

WINDOW_SECONDS = 60.0  # that count as recent
FEWEST_ROUNDS, MOST_ROUNDS = 20, 1000  # of a window: before a verdict, and at most
SHARE = 0.5  # of all waiting, caused by one worker, before it is named
LAG_OF_ROUND = 0.2  # its lag against the round's duration, before it is named
SLOW = 1.25  # times the median of the other workers, before a worker is called slow, or stale
EXPLAINED = 0.5  # of what is to be explained, by one cause, before it is named
PHASES = ("data", "forward", "backward", "encode", "send", "wait", "receive", "apply", "checkpoint", "other")
WAITING = ("wait", "receive")  # phases in which a worker depends on others


class Cause(StrEnum):
    """Where a slow worker loses its time."""

    DATA = "data"
    COMPUTE = "compute"
    SEND = "send"
    UNKNOWN = "unknown"


PARTS = {
    Cause.DATA: ("data",),
    Cause.COMPUTE: ("forward", "backward", "apply", "checkpoint", "other"),
    Cause.SEND: ("encode", "send"),
}


@dataclass(frozen=True)
class Round:
    """One update that waited for all workers."""

    lags: Mapping[int, float]  # of each worker, in seconds
    seconds: float  # since the update before
    waited: float  # from the median arrival to the last: what the typical worker lost
    spread: float  # from the first arrival to the last
    last: int  # the worker that came last
    gap: float  # from the last but one to the last
    at: float = 0.0  # its end


@dataclass(frozen=True)
class Verdict:
    """A worker that makes the others wait."""

    worker: int
    lag_share: float  # of all lag
    lag_seconds: float  # in a round
    round_seconds: float
    cost: float  # share of the throughput, 0 to 1


def by_arrival(arrivals: Mapping[int, float], since: float, at: float) -> Round:
    """A round of at least two workers, from the times at which their gradients arrived on one clock."""
    median = statistics.median(arrivals.values())
    lags = {worker: max(0.0, time - median) for worker, time in arrivals.items()}
    last, gap = _last(arrivals)
    latest = max(arrivals.values())
    return Round(lags, at - since, latest - median, latest - min(arrivals.values()), last, gap, at)


def by_wait(waits: Mapping[int, float], seconds: float, at: float) -> Round:
    """A step of a ring, from how long each of at least two workers waited in it."""
    median = statistics.median(waits.values())
    lags = {worker: max(0.0, median - wait) for worker, wait in waits.items()}
    last, gap = _last({worker: -wait for worker, wait in waits.items()})
    shortest = min(waits.values())
    return Round(lags, seconds, median - shortest, max(waits.values()) - shortest, last, gap, at)


def _last(times: Mapping[int, float]) -> tuple[int, float]:
    (before, _), (latest, last) = sorted(((t, w) for w, t in times.items()))[-2:]
    return last, latest - before


class Tally:
    """Sums over rounds; what was added can be taken away again."""

    def __init__(self) -> None:
        self.lag, self.gap, self.last = Counter[int](), Counter[int](), Counter[int]()
        self.rounds, self.seconds, self.waited = 0, 0.0, 0.0

    def add(self, each: Round, sign: int = 1) -> None:
        """Count a round, or with `sign` -1 take it away."""
        for worker, lag in each.lags.items():
            self.lag[worker] += sign * lag  # type: ignore[assignment]
        self.gap[each.last] += sign * each.gap  # type: ignore[assignment]
        self.last[each.last] += sign
        self.rounds += sign
        self.seconds += sign * each.seconds
        self.waited += sign * each.waited

    def verdict(self) -> Verdict | None:
        """The worker that makes the others wait: most of all lag, and a lag that matters against the round."""
        total = sum(self.lag.values())
        if self.rounds < FEWEST_ROUNDS or total <= 0 or self.seconds <= 0:
            return None
        worker = max(self.lag, key=lambda w: self.lag[w])
        share, each, duration = self.lag[worker] / total, self.lag[worker] / self.rounds, self.seconds / self.rounds
        if share <= SHARE or each <= LAG_OF_ROUND * duration:
            return None
        return Verdict(worker, share, each, duration, min(1.0, max(0.0, self.gap[worker] / self.seconds)))


class Lags:
    """The rounds of the last minute, and the sums over the whole run."""

    def __init__(self) -> None:
        self.recent, self.whole = Tally(), Tally()
        self._rounds: deque[Round] = deque()

    def add(self, each: Round) -> None:
        """Count a round; those that are too old for the window leave it, but a few stay however slow the steps are."""
        self._rounds.append(each)
        self.recent.add(each)
        self.whole.add(each)
        while len(self._rounds) > MOST_ROUNDS or (
            len(self._rounds) > FEWEST_ROUNDS and self._rounds[0].at < each.at - WINDOW_SECONDS
        ):
            self.recent.add(self._rounds.popleft(), sign=-1)


def cause(worker: int, phases: Mapping[int, Mapping[str, float]], late: float | None = None) -> Cause:
    """Which part of a worker's step is longer than the others', from the mean seconds of every worker's phases.

    `late` is what is to be explained, its lag in seconds; by default all that it spends more than the others.
    """
    others = [p for w, p in phases.items() if w != worker]
    if worker not in phases or not others:
        return Cause.UNKNOWN
    excess = {c: _sum(phases[worker], parts) - _typical(others, parts) for c, parts in PARTS.items()}
    most = max(excess, key=lambda c: excess[c])
    wanted = sum(max(0.0, e) for e in excess.values()) if late is None else late
    return most if excess[most] > 0 and excess[most] >= EXPLAINED * wanted else Cause.UNKNOWN


def own_seconds(phases: Mapping[str, float]) -> float:
    """The part of a step in which a worker depends on nobody."""
    return sum(seconds for phase, seconds in phases.items() if phase not in WAITING)


def outstanding(values: Mapping[int, float | None], at_least: float) -> set[int]:
    """The workers whose value is well above the median of the others', and by a difference that matters."""
    known = sorted((value, worker) for worker, value in values.items() if value is not None)
    found, others = set(), len(known) - 1
    for place, (value, worker) in enumerate(known if others else ()):
        middle = ((others - 1) // 2, others // 2)  # of the others, who are one fewer from this place on
        usual = statistics.fmean(known[i if i < place else i + 1][0] for i in middle)
        if value > SLOW * usual and value - usual > at_least:
            found.add(worker)
    return found


def _sum(phases: Mapping[str, float], parts: Iterable[str]) -> float:
    return sum(phases.get(part, 0.0) for part in parts)


def _typical(workers: Sequence[Mapping[str, float]], parts: Sequence[str]) -> float:
    return statistics.median(_sum(phases, parts) for phases in workers)
