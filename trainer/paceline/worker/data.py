"""This worker's part of the data."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol

from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from paceline.worker.brake import Brake
from paceline.worker.clock import PhaseClock
from paceline_core.launch import Slowed


class Training(Protocol):
    """What the loader needs to know of the training that it feeds."""

    clock: PhaseClock
    brake: Brake

    def count_samples(self, count: int) -> None:
        """So many samples were handed out."""

    def repeat_batch(self) -> bool:
        """Whether the last batch's gradient was rejected and is to be computed again."""


class ShardedLoader:
    """A loader's batches for one worker; it can be iterated again for each epoch, and has a length."""

    def __init__(self, loader: Any, rank: int, world_size: int, training: Training) -> None:
        self._rank, self._world_size, self._training, self._epoch = rank, world_size, training, 0
        self._sampler: DistributedSampler[Any] | None = None
        self._loader = loader
        if _plain(loader):
            shuffle = isinstance(loader.sampler, RandomSampler)
            self._sampler = DistributedSampler(loader.dataset, world_size, rank, shuffle, drop_last=loader.drop_last)
            self._loader = _with_sampler(loader, self._sampler)

    def __len__(self) -> int:
        return len(self._loader) if self._sampler else len(self._loader) // self._world_size

    def __iter__(self) -> Iterator[Any]:
        if self._sampler:
            self._sampler.set_epoch(self._epoch)
        self._epoch += 1
        clock, batches = self._training.clock, self._batches()
        while True:
            clock.enter("data")
            batch = next(batches, _END)
            if batch is not _END:
                self._training.brake.pause(Slowed.DATA)
            clock.enter("other")
            if batch is _END:
                return
            self._training.count_samples(_samples(batch))
            yield batch
            while self._training.repeat_batch():
                yield batch

    def _batches(self) -> Iterator[Any]:
        if self._sampler:
            yield from self._loader
            return
        # Every world_size-th batch; an uneven rest is dropped, so that all workers make the same number of steps.
        source = iter(self._loader)
        while len(group := list(islice(source, self._world_size))) == self._world_size:
            yield group[self._rank]


_END = object()


def _plain(loader: Any) -> bool:
    """Whether it is a DataLoader over indices with torch's own samplers, which can be divided by index."""
    return (
        type(loader) is DataLoader
        and type(loader.batch_sampler) is BatchSampler
        and type(loader.sampler) in (RandomSampler, SequentialSampler)
        and not getattr(loader.sampler, "replacement", False)
        and hasattr(loader.dataset, "__len__")
    )


def _with_sampler(loader: DataLoader[Any], sampler: DistributedSampler[Any]) -> DataLoader[Any]:
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _samples(batch: Any) -> int:
    while isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    if isinstance(batch, dict) and batch:
        batch = next(iter(batch.values()))
    try:
        return len(batch)
    except TypeError:
        return 0
