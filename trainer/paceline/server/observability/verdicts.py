"""The verdict on the workers, as it stands now: who makes the others wait, since when, and why."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from paceline.server.observability.worker_statistics import WorkerStatistics, mean
from paceline_core.attribution import Cause, Lags, Tally, cause, outstanding, own_seconds

SLOW_SECONDS, STALE_UPDATES = 0.002, 1.0  # the least differences that count
MAKES_WAIT, SLOW, STALE = "makes the others wait", "slow", "stale"


class Verdicts:
    """Remembers only since when the verdict stands."""

    def __init__(self, lags: Lags, workers: Mapping[int, WorkerStatistics], waits_for_all: bool) -> None:
        self._lags, self._workers, self._waits_for_all = lags, workers, waits_for_all
        self._named: int | None = None
        self._since = 0.0

    def verdict(self, now: float) -> dict[str, Any] | None:
        """The worker that makes the others wait now, in Unix time; None where nobody waits for all."""
        found = self._told(self._lags.recent)
        named = found["worker"] if found else None
        if named != self._named:
            self._named, self._since = named, now
        return None if found is None else {**found, "since": self._since}

    def overall(self) -> dict[str, Any] | None:
        """The worker that made the others wait over the whole run."""
        return self._told(self._lags.whole)

    def of_workers(self) -> dict[int, tuple[list[str], Cause]]:
        """What is to be said of single workers, and the cause."""
        if self._waits_for_all:
            named = self._told(self._lags.recent)
            return {named["worker"]: ([MAKES_WAIT], named["cause"])} if named else {}
        own = {w: own_seconds(p) if (p := it.phases()) else None for w, it in self._workers.items()}
        slow = outstanding(own, SLOW_SECONDS)
        stale = outstanding({w: mean(self._workers[w].contended) for w in self._workers}, STALE_UPDATES) if slow else ()
        return {w: ([SLOW, STALE] if w in stale else [SLOW], self._cause(w, None)) for w in slow}

    def _told(self, tally: Tally) -> dict[str, Any] | None:
        found = tally.verdict()
        return None if found is None else {**asdict(found), "cause": self._cause(found.worker, found.lag_seconds)}

    def _cause(self, worker: int, late: float | None) -> Cause:
        return cause(worker, {w: p for w, it in self._workers.items() if (p := it.phases())}, late)
