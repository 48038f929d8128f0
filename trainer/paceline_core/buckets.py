"""How parameters are cut and spread over the shards: a pure function of their sizes, so that everyone plans alike.

A tensor larger than a bucket is cut into slices. Cuts lie at multiples of 1024 elements: element-wise kernels work on
whole vectors and treat the rest apart, with results that can differ in the last bit, so that a slice must end
where a vector ends, whatever its width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ALIGNMENT = 1024  # elements
OFFSET_BYTES = 64  # a slice begins at a multiple of a cache line


@dataclass(frozen=True)
class Parameter:
    """A parameter to be planned for; `itemsize` in bytes."""

    name: str
    numel: int
    itemsize: int


@dataclass(frozen=True)
class Slice:
    """Elements [start, stop) of parameter number `parameter`, at byte `offset` of its bucket."""

    parameter: int
    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class Bucket:
    """What travels in one frame; `nbytes` includes the padding between slices."""

    index: int
    slices: tuple[Slice, ...]
    nbytes: int


@dataclass(frozen=True)
class ShardPlan:
    """What one server is to hold."""

    ordinal: int
    buckets: tuple[Bucket, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all its buckets."""
        return sum(b.nbytes for b in self.buckets)


def plan(parameters: Sequence[Parameter], shards: int, bucket_bytes: int) -> tuple[ShardPlan, ...]:
    """Cut `parameters` and give each slice to the shard with the fewest bytes so far.

    The order is reversed, because backward makes the gradients of the last parameters first. A bucket holds at most
    `bucket_bytes`, or one slice of ALIGNMENT elements when that is more.
    """
    loads = [0] * shards
    pieces: list[list[tuple[int, int, int, int]]] = [[] for _ in range(shards)]  # parameter, start, stop, bytes
    for index in reversed(range(len(parameters))):
        parameter = parameters[index]
        for start, stop in _cuts(parameter, bucket_bytes):
            nbytes = _padded((stop - start) * parameter.itemsize)
            shard = loads.index(min(loads))
            loads[shard] += nbytes
            pieces[shard].append((index, start, stop, nbytes))
    return tuple(ShardPlan(i, tuple(_pack(p, bucket_bytes))) for i, p in enumerate(pieces))


def _cuts(parameter: Parameter, bucket_bytes: int) -> Iterator[tuple[int, int]]:
    length = max(ALIGNMENT, bucket_bytes // parameter.itemsize // ALIGNMENT * ALIGNMENT)
    for start in range(0, parameter.numel, length):
        yield start, min(parameter.numel, start + length)


def _padded(nbytes: int) -> int:
    return -(-nbytes // OFFSET_BYTES) * OFFSET_BYTES


def _pack(pieces: Sequence[tuple[int, int, int, int]], bucket_bytes: int) -> Iterator[Bucket]:
    index, filled = 0, 0
    slices: list[Slice] = []
    for parameter, start, stop, nbytes in pieces:
        if slices and filled + nbytes > bucket_bytes:
            yield Bucket(index, tuple(slices), filled)
            index, filled, slices = index + 1, 0, []
        slices.append(Slice(parameter, start, stop, filled))
        filled += nbytes
    if slices:
        yield Bucket(index, tuple(slices), filled)
