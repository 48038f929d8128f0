"""Values over time, however many, in bins that get wider as the time gets longer. Memory stays bounded."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

MOST_BINS = 500  # of a curve: about two pixels each
FINEST_SECONDS = 0.001


class Point(NamedTuple):
    """The values of a bin."""

    time: float  # the bin's middle, in seconds
    mean: float
    least: float
    greatest: float


@dataclass
class Bin:
    """Values that fell into one stretch of time."""

    count: int
    total: float
    least: float
    greatest: float

    def add(self, other: "Bin") -> None:
        """Take in the values of another bin."""
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.greatest = max(self.greatest, other.greatest)


@dataclass
class Curves:
    """Curves that share their bins; times are seconds, and those below 0 count as 0."""

    most: int = MOST_BINS
    width: float = FINEST_SECONDS
    _curves: dict[Hashable, dict[int, Bin]] = field(default_factory=dict)

    def add(self, key: Hashable, time: float, value: float) -> None:
        """Count a value of the curve `key`."""
        while time >= self.most * self.width:
            self._widen()
        self._put(self._curves.setdefault(key, {}), int(max(0.0, time) / self.width), Bin(1, value, value, value))

    def points(self, key: Hashable) -> list[Point]:
        """The curve in the order of time; empty when it has no value."""
        bins = sorted(self._curves.get(key, {}).items())
        return [Point((i + 0.5) * self.width, b.total / b.count, b.least, b.greatest) for i, b in bins]

    def _widen(self) -> None:
        self.width *= 2
        for key, bins in self._curves.items():
            self._curves[key] = {}
            for index, each in bins.items():
                self._put(self._curves[key], index // 2, each)

    def _put(self, bins: dict[int, Bin], index: int, new: Bin) -> None:
        if index in bins:
            bins[index].add(new)
        else:
            bins[index] = new
