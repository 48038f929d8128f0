"""Which of a data set's items are this worker's: pure functions over what a sampler draws alike on all workers."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import Any, TypeVar

T = TypeVar("T")


def mix(*parts: int) -> int:
    """A seed of 63 bits that depends on all parts: equal seeds of two data sets, or epochs, give different orders."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def share(items: Iterable[T], rank: int, world_size: int, drop_rest: bool) -> Iterator[T]:
    """Every `world_size`-th item, from number `rank` on.

    An uneven rest is dropped, or else filled up with the first items once more, as DistributedSampler does, so that
    every worker gets equally many.
    """
    source, first = iter(items), list[T]()
    while len(group := list(islice(source, world_size))) == world_size:
        first = first or group
        yield group[rank]
    if group and not drop_rest:
        yield next(islice(cycle([*group, *first]), rank, None))


def share_length(count: int, world_size: int, drop_rest: bool) -> int:
    """How many items `share` gives of so many."""
    return count // world_size if drop_rest else -(-count // world_size)


def batched(indices: Iterable[T], size: int, drop_last: bool) -> Iterator[list[T]]:
    """Lists of `size` items; a shorter last one only without `drop_last`."""
    source = iter(indices)
    while batch := list(islice(source, size)):
        if len(batch) == size or not drop_last:
            yield batch


def batches_length(count: int, size: int, drop_last: bool) -> int:
    """How many lists `batched` gives of so many items."""
    return count // size if drop_last else -(-count // size)


def fingerprint(items: Iterable[Any]) -> str:
    """A text that is the same for the same indices, whether they are numbers, tensors, texts or lists of these."""
    return hashlib.blake2b(repr([_plain(i) for i in items]).encode(), digest_size=16).hexdigest()


def _plain(item: Any) -> Any:
    if isinstance(item, list | tuple):
        return [_plain(i) for i in item]
    if hasattr(item, "tolist"):  # tensors, and numpy's arrays and numbers
        return item.tolist()
    return item if isinstance(item, int | float | str | bytes) else type(item).__qualname__
