"""The kinds of loaders, and how this worker gets its part of each: by index, by batch, or as the script divided it."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Protocol

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    IterDataPipe,
    MapDataPipe,
    Sampler,
    Subset,
)

from paceline.worker.data.datasets import DataSet, DataSets
from paceline.worker.data.random_state import owners_of
from paceline.worker.data.sampling import batched, batches_length, fingerprint, share, share_length
from paceline_core.errors import UsageError


def nothing() -> None:
    """Do nothing."""


AHEAD = 256  # indices, or batches of them, that are drawn at a time
HASHED_BYTES = 1 << 16  # of each tensor in the first batch of a stream


class BatchSource(Protocol):
    """A loader's batches for one worker."""

    data_set: DataSet

    def __len__(self) -> int:
        """How many batches an epoch has. Raises TypeError when that is not known."""

    def batches(self, epoch: int, before: int = 0, begun: Callable[[], None] = nothing) -> Iterator[Any]:
        """The batches of an epoch, without so many at its beginning; `begun` is called before the first is read."""


def batch_source(loader: Any, sets: DataSets, rank: int, world_size: int) -> BatchSource:
    """How to read this worker's part. Raises UsageError for what cannot be divided."""
    if not isinstance(loader, DataLoader):
        _refuse_what_gives_no_batches(loader)
        return Stream(loader, sets.get(loader, _name(loader), None))
    if isinstance(loader.dataset, IterDataPipe | MapDataPipe):
        raise UsageError(
            "paceline.shard() cannot divide a torch data pipe, because DataLoader divides it by itself in some modes: "
            "make it a Dataset or an IterableDataset"
        )
    samplers = owners_of(_drawn_by(loader))
    divided = next((s for s in samplers if hasattr(s, "num_replicas") and hasattr(s, "rank")), None)
    data_set = sets.get(loader.dataset, _about(loader), loader.generator)
    if divided is not None:
        _check_division(divided, rank, world_size)
        return Divided(loader, data_set)
    if isinstance(loader.dataset, IterableDataset) or type(loader).__iter__ is not DataLoader.__iter__:
        return Stream(loader, data_set)
    return Indexed(loader, data_set)


class Drawn(Sampler[Any]):
    """The part of this worker of what a sampler draws, in the epoch that is set when an iteration begins.

    A torch BatchSampler's indices are divided, and then put into batches; of any other sampler its items are, be they
    indices or whole batches.
    """

    def __init__(self, drawn: Any, data_set: DataSet) -> None:
        batch = drawn if type(drawn) is BatchSampler else None
        self._source = drawn if batch is None else batch.sampler
        self._size = None if batch is None else batch.batch_size
        self._drop, self._data_set = bool(getattr(drawn, "drop_last", False)), data_set
        self._owners, self.epoch = owners_of(drawn), 0
        self.before = 0  # items to leave out at the beginning

    def __len__(self) -> int:
        count = share_length(len(self._source), self._data_set.world_size, self._drop)  # type: ignore[arg-type]
        return batches_length(count, self._size, self._drop) if self._size else count

    def __iter__(self) -> Iterator[Any]:
        mine = share(self._draw(self.epoch), self._data_set.rank, self._data_set.world_size, self._drop)
        return islice(batched(mine, self._size, self._drop) if self._size else mine, self.before, None)

    def _draw(self, epoch: int) -> Iterator[Any]:
        """What all workers draw alike; a sampler without an end is never read to its end."""
        common = self._data_set.random(epoch, self._owners)
        with common.drawing():
            source = iter(self._source)
            part = list(islice(source, AHEAD))
        self._data_set.check_order(epoch, fingerprint(part))
        while part:
            yield from part
            with common.drawing():
                part = list(islice(source, AHEAD))


class Indexed:
    """A DataLoader over a map-style data set: only this worker's samples are read."""

    def __init__(self, loader: DataLoader[Any], data_set: DataSet) -> None:
        self.data_set = data_set
        self._drawn = Drawn(_drawn_by(loader), data_set)
        self._loader = _copy(loader, **{"sampler" if loader.batch_sampler is None else "batch_sampler": self._drawn})
        self._open = 0
        self._refuse_epochs_without_a_batch(loader)

    def __len__(self) -> int:
        return len(self._drawn)

    def batches(self, epoch: int, before: int = 0, begun: Callable[[], None] = nothing) -> Iterator[Any]:
        """The batches of an epoch; persistent processes serve one iteration at a time."""
        self._drawn.epoch, self._drawn.before = epoch, before
        loader = _copy(self._loader, persistent_workers=False) if self._open else self._loader
        self._open += 1
        try:
            source = iter(loader)
            begun()
            yield from source
        finally:
            self._open -= 1

    def _refuse_epochs_without_a_batch(self, loader: DataLoader[Any]) -> None:
        try:
            ours, whole = len(self), len(loader)
        except TypeError:
            return  # without an end
        if whole and not ours:
            raise UsageError(
                f"{_about(loader)} gives each of {self.data_set.world_size} workers less than one batch, which "
                "drop_last=True leaves out: make the batches smaller, because their size is that of one worker"
            )


class Divided:
    """A loader whose sampler the script has made for this worker: it is left alone, `set_epoch` and seed included."""

    def __init__(self, loader: Any, data_set: DataSet) -> None:
        self._loader, self.data_set = loader, data_set

    def __len__(self) -> int:
        return len(self._loader)

    def batches(self, epoch: int, before: int = 0, begun: Callable[[], None] = nothing) -> Iterator[Any]:
        """The loader's own batches; those before are read."""
        del epoch  # the sampler has its own
        source = iter(self._loader)
        for _ in islice(source, before):
            pass
        begun()
        yield from source


class Stream:
    """An iterable of batches: every worker reads all of them, and takes every `world_size`-th.

    An uneven rest is dropped, so that all workers make the same number of steps.
    """

    def __init__(self, loader: Any, data_set: DataSet) -> None:
        if getattr(loader, "num_workers", 0) > 1 and not getattr(loader, "in_order", True):
            raise UsageError(
                "paceline.shard() cannot divide a stream that a DataLoader with in_order=False reads, because its "
                "batches come in another order on each worker: set in_order=True"
            )
        plain = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
        # persistent processes would go on with the random state that the iteration before has left
        self._loader = _copy(loader, persistent_workers=False) if plain else loader
        self._once, self._used = iter(loader) is loader if not plain else False, False
        self._owners = [loader, *(owners_of(loader.dataset) if hasattr(loader, "dataset") else ())]
        self.data_set = data_set

    def __len__(self) -> int:
        return len(self._loader) // self.data_set.world_size

    def batches(self, epoch: int, before: int = 0, begun: Callable[[], None] = nothing) -> Iterator[Any]:
        """The batches of an epoch; those before are read.

        Raises UsageError when there are too few, or they cannot be read again.
        """
        if self._once and self._used:
            raise UsageError(
                "paceline.shard() was given an iterator, which can be read only once, and looking at its first batch "
                "counts: give it an object whose __iter__ begins anew"
            )
        self._used, rank, world_size = True, self.data_set.rank, self.data_set.world_size
        given, source = 0, enumerate(self._read(epoch))
        if before:
            given = sum(1 for _ in islice(source, before * world_size)) // world_size
        begun()
        for number, batch in source:
            if number % world_size == rank:
                mine = batch
            if number % world_size == world_size - 1:
                given += 1
                yield mine
        if not given and world_size > 1:
            raise UsageError(f"a stream gave fewer batches than there are workers, {world_size}: make them smaller")

    def _read(self, epoch: int) -> Iterator[Any]:
        common, end = self.data_set.random(epoch, self._owners), object()
        with common.drawing():
            source = iter(self._loader)
            batch = next(source, end)
        self.data_set.check_stream(epoch, _digest(batch))
        while batch is not end:
            yield batch
            with common.drawing():
                batch = next(source, end)


def _copy(loader: Any, **changes: Any) -> Any:
    """A loader of the same kind with other attributes, which DataLoader does not let one set."""
    copied = copy.copy(loader)
    copied.__dict__.update(changes, _iterator=None)
    return copied


def _refuse_what_gives_no_batches(loader: Any) -> None:
    if isinstance(loader, Dataset) and not hasattr(type(loader), "__iter__"):
        raise UsageError(f"paceline.shard() takes a DataLoader: make one of the {type(loader).__qualname__}")
    if not isinstance(loader, Iterable):
        raise UsageError(f"paceline.shard() takes a DataLoader or an iterable of batches, not {_name(loader)}")


def _check_division(sampler: Any, rank: int, world_size: int) -> None:
    if (sampler.rank, sampler.num_replicas) != (rank, world_size):
        raise UsageError(
            f"the loader's {type(sampler).__qualname__} is for rank {sampler.rank} of {sampler.num_replicas}, and this "
            f"is worker {rank} of {world_size}: give it paceline.rank() and paceline.world_size(), or leave it out, "
            "because paceline.shard() divides the samples itself"
        )


def _drawn_by(loader: DataLoader[Any]) -> Any:
    """What draws the loader's batches; with batch_size=None it gives one item for each."""
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def _about(loader: DataLoader[Any]) -> str:
    """A text of what must be the same on all workers; a batch size may differ."""
    sampler = loader.sampler if type(loader.batch_sampler) is BatchSampler else _drawn_by(loader)
    count = "" if isinstance(loader.dataset, IterableDataset) else f" by {_name(sampler)}{_size(sampler)}"
    part = f" ({fingerprint(loader.dataset.indices)[:8]})" if isinstance(loader.dataset, Subset) else ""
    return f"{_name(loader.dataset)}{_size(loader.dataset)}{part}{count}"


def _name(it: object) -> str:
    return type(it).__qualname__


def _size(it: Any) -> str:
    try:
        return f" of {len(it)}"
    except (TypeError, NotImplementedError):
        return ""


def _digest(batch: Any) -> str:
    """A text that is the same for the same batch; of what is neither tensor, number nor text only the type counts."""
    made = hashlib.blake2b(digest_size=16)
    for part in _parts(batch):
        made.update(part)
    return made.hexdigest()


def _parts(batch: Any) -> Iterator[bytes]:
    if isinstance(batch, torch.Tensor) and batch.layout == torch.strided:
        part = batch.detach().flatten()[: HASHED_BYTES // batch.element_size()].cpu()
        yield f"{batch.dtype}{tuple(batch.shape)}{part.tolist()}".encode()
    elif isinstance(batch, Mapping):
        yield from chain.from_iterable(_parts(v) for v in batch.values())
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        yield from chain.from_iterable(_parts(v) for v in batch)
    elif isinstance(batch, int | float | str | bytes):
        yield repr(batch).encode()
    else:
        yield _name(batch).encode()
