"""This worker's part of the data, as the object that paceline.shard returns."""

from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from paceline.worker.data.datasets import DataSet
from paceline.worker.data.epochs import Pass
from paceline.worker.data.loader_kinds import BatchSource, nothing
from paceline.worker.data.random_state import kept
from paceline.worker.observability.injected_delay import InjectedDelay
from paceline.worker.observability.phase_clock import PhaseClock
from paceline.worker.observability.step_metrics import LastStep
from paceline_core.launch import Slowed


class RunningTraining(Protocol):
    """What the loader needs to know of the training that it feeds."""

    clock: PhaseClock
    injected_delay: InjectedDelay
    recomputes: bool  # whether a batch comes again when its gradient was rejected as stale

    def count_samples(self, count: int) -> None:
        """So many samples were handed out."""

    def last_step(self) -> LastStep | None:
        """What came of the last step: another object for each step."""

    def asks(self, data_set: DataSet, it: Pass | None) -> None:
        """The script asks an iteration for another batch, or begins one (None)."""


class ShardedLoader:
    """A loader's batches for one worker. It answers like the loader, which it leaves as it is.

    With `onStale: Recompute` it holds the batches that it gave since the last optimizer step: in a step of n
    accumulated batches, n of them are in memory.
    """

    def __init__(self, loader: Any, source: BatchSource, training: RunningTraining) -> None:
        self._loader, self._source, self._training = loader, source, training

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # the object's own, as while it is copied
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._source)

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is of this epoch, as for a script that goes on from a checkpoint of its own."""
        self._source.data_set.epochs.set(epoch)
        for part in ("sampler", "batch_sampler", "dataset"):
            told = getattr(getattr(self._loader, part, None), "set_epoch", None)
            if told is not None:
                told(epoch)

    def __iter__(self) -> Iterator[Any]:
        self._source.data_set.epochs.asked_for_iteration()
        return self._iterate()

    def _iterate(self) -> Iterator[Any]:
        epochs = self._source.data_set.epochs
        self._training.asks(self._source.data_set, None)
        it = epochs.begin()
        try:
            before = epochs.before(it)
            if before is None:
                epochs.reach(it)
                return  # this epoch was made in the run that this one goes on from
            put_back = kept() if it.goes_on else nothing

            def begun() -> None:
                put_back()  # what is read and made to get there was read and made before
                epochs.reach(it)

            yield from self._with_repeats(it, self._source.batches(it.epoch, before, begun))
        finally:
            epochs.end(it)

    def _with_repeats(self, it: Pass, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches; those of a step that was rejected as stale come again, all of them, in the same order."""
        training, given, again = self._training, list[Any](), deque[Any]()
        while (batch := again.popleft() if again else self._next(batches)) is not _END:
            before = training.last_step()
            if training.recomputes:
                given.append(batch)
            it.given += 1
            yield batch
            self._source.data_set.epochs.resumed(it)
            last = training.last_step()
            if last is not before:
                if last is not None and not last.accepted and last.reason == "stale":
                    again.extendleft(reversed(given))
                    it.given -= len(given)
                given.clear()
            training.asks(self._source.data_set, it)

    def _next(self, batches: Iterator[Any]) -> Any:
        self._training.clock.enter("data")
        batch = next(batches, _END)
        if batch is not _END:
            self._training.injected_delay.pause(Slowed.DATA)
            self._training.count_samples(_samples(batch))
        self._training.clock.enter("other")
        return batch


_END = object()


def _samples(batch: Any) -> int:
    while isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    if isinstance(batch, dict) and batch:
        batch = next(iter(batch.values()))
    try:
        return len(batch)
    except TypeError:
        return 0
