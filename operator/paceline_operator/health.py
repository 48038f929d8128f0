"""Whether the operator still hears of changes: what a list shows twice must have come through the watch in between."""

from collections.abc import Mapping


class Health:
    """A resource version that was listed twice, a resync apart, and that no watch has told, means a dead watch."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}  # uid -> resource version, from the watch
        self._unheard: dict[str, str] = {}  # from the last list
        self.problem: str | None = None

    def seen(self, uid: str, version: str | None) -> None:
        """The watch told of this version; None when the training is gone."""
        if version is None:
            self._seen.pop(uid, None)
        else:
            self._seen[uid] = version

    def listed(self, versions: Mapping[str, str]) -> None:
        """A list shows these versions."""
        unheard = {uid: version for uid, version in versions.items() if self._seen.get(uid) != version}
        dead = [uid for uid, version in unheard.items() if self._unheard.get(uid) == version]
        self._unheard = unheard
        self.problem = f"the watch did not tell of {len(dead)} changed trainings" if dead else None
