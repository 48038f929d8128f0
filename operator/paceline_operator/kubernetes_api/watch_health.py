"""Health of the watches: what lists show must soon have come through the watches too."""

import time
from collections.abc import Callable, Mapping

from paceline_operator.observability.metrics import Metrics

LATE_SECONDS = 30.0  # that a watch may be behind a list


class WatchHealth:
    """A version that was listed, is listed again much later, and was never told, means that the watch is dead."""

    def __init__(self, resource: str, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._resource, self._metrics, self._clock = resource, metrics, clock
        self._seen: dict[str, str] = {}  # uid -> resource version, from the watch
        self._unheard: dict[str, tuple[str, float]] = {}  # uid -> version, and when it was first listed
        self._dead: set[str] = set()
        self._listed: set[str] = set()  # uids in the list that the watch begins with

    def seen(self, uid: str, version: str | None, first: bool = False) -> None:
        """The watch told of this version; None: it is gone. `first`: in the list that a watch begins with."""
        if first:
            self._count_restart(uid)
        if version is None:
            self._seen.pop(uid, None)
            self._listed.discard(uid)
        else:
            self._seen[uid] = version
        self._unheard.pop(uid, None)
        self._dead.discard(uid)
        self._metrics.watch_alive(self._resource)

    def listed(self, versions: Mapping[str, str]) -> None:
        """A list shows these versions."""
        now = self._clock()
        for uid, version in versions.items():
            before, since = self._unheard.get(uid, ("", now))
            if self._seen.get(uid) == version:
                self._unheard.pop(uid, None)
                self._dead.discard(uid)
            elif before != version:
                self._unheard[uid] = (version, now)
            elif now - since >= LATE_SECONDS:
                self._dead.add(uid)

    def checked(self) -> None:
        """Everything was listed."""
        if not self._dead:
            self._metrics.watch_alive(self._resource)

    @property
    def problem(self) -> str | None:
        """Why the watch is taken for dead."""
        return f"the watch did not tell of {len(self._dead)} changed {self._resource}" if self._dead else None

    def _count_restart(self, uid: str) -> None:
        """A known object in the list that a watch begins with: it began anew, if not by an object of the same list."""
        if uid in self._listed:
            self._listed = set()
        if uid in self._seen and not self._listed:
            self._metrics.watch_restarted(self._resource)
        self._listed.add(uid)


class Health:
    """Health of both watches."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self.trainings, self.pods = WatchHealth("trainings", metrics, clock), WatchHealth("pods", metrics, clock)

    def checked(self) -> None:
        """Everything was listed since the last time."""
        self.trainings.checked()
        self.pods.checked()

    @property
    def problem(self) -> str | None:
        """Why the operator should be started anew."""
        return self.trainings.problem or self.pods.problem
