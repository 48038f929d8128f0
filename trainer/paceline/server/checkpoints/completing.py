"""What shard 0 and the coordinator have in common about checkpoints: they complete them, where any are saved."""

from collections.abc import Callable

from paceline.checkpoints.restoring import Restored
from paceline.server.checkpoints.completion import Completion
from paceline.server.checkpoints.last_save import LastSave


class Completing:
    """A subclass sets `_restored`, what the training goes on from, and where it completes checkpoints the other two."""

    _restored: Restored | None = None
    _completion: Completion | None = None
    _last_save: LastSave | None = None

    def hear_worker(self, worker: int, step: int, data: bytes) -> None:
        """A worker's state for the checkpoint of `step`."""
        if self._completion is not None:
            self._completion.hear_worker(worker, step, data)

    def replaced(self, worker: int, place: Callable[[int], bytes | None]) -> None:
        """Another goes on where a worker was; `place` tells where that was after so many updates."""
        if self._completion is not None:
            self._completion.replaced(worker, place)

    def worker_state(self, worker: int) -> bytes:
        """The state to go on from; b"" where there is none. Raises CheckpointDamaged."""
        return self._restored.worker_state(worker) if self._restored else b""

    def look(self) -> None:
        """Now and then."""
        if self._completion is not None:
            self._completion.look()

    def idle(self) -> bool:
        """Whether no checkpoint is on its way."""
        return self._completion is None or not self._completion.busy

    def may_end(self) -> bool:
        """Whether a process that was told to end waits for no checkpoint, or not any more."""
        return self._last_save is None or self._last_save.may_end()

    def close(self) -> None:
        """Write what is on its way."""
        if self._completion is not None:
            self._completion.close()
