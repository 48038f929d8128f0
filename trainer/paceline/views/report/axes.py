"""Axes: round numbers for ticks, and the unit that fits the values. Pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass

TIME_UNITS = ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s"), (60.0, "min"), (3600.0, "h"))
LEAST = 1e-30  # below it a length counts as none
LOG_FROM = 30.0  # greatest against least value, from which an axis is logarithmic


@dataclass(frozen=True)
class Scale:
    """One axis, from `low` to `high`, both in plain units; `ticks` with their labels."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies between the ends, from 0 to 1; what is beyond them lies at the end."""
        value = min(self.high, max(self.low, value))
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / ((self.high - self.low) or 1.0)


def linear(high: float, label: Callable[[float], str] = "{:g}".format, ticks: int = 5) -> Scale:
    """From 0 to a round number that is not below `high`."""
    high = high if high > LEAST else 1.0
    step = _round_step(high / ticks)
    count = max(1, math.ceil(round(high / step, 6)))
    return Scale(0.0, count * step, tuple((i * step, label(round(i * step, 12))) for i in range(count + 1)))


def durations(high: float, ticks: int = 5, exact: bool = False) -> Scale:
    """A linear axis of seconds in the unit that fits; `exact` ends it at `high`."""
    size, unit = next((u for u in reversed(TIME_UNITS) if high >= u[0]), TIME_UNITS[0])
    scale = linear(high / size, ticks=ticks)
    top = high if exact and high > 0 else scale.high * size
    marks = tuple((value * size, f"{text} {unit}" if value else "0") for value, text in scale.ticks)
    return Scale(0.0, top, tuple(m for m in marks if m[0] <= top * 1.001))


def values(least: float, greatest: float) -> Scale:
    """For a loss and its like: logarithmic when they are positive and far apart, else from 0 unless some are below."""
    if least > 0 and greatest / least > LOG_FROM:
        low, high = math.floor(math.log10(least)), math.ceil(math.log10(greatest))
        stride = max(1, (high - low) // 5)
        marks = tuple((10.0**e, _power(e)) for e in range(low, high + 1, stride))
        return Scale(10.0**low, 10.0**high, marks, logarithmic=True)
    if least >= 0:
        return linear(greatest)
    step = _round_step((greatest - least) / 5 or 1.0)
    first = math.floor(least / step)
    last = max(first + 1, math.ceil(greatest / step))
    marks = tuple((i * step, f"{round(i * step, 12):g}") for i in range(first, last + 1))
    return Scale(first * step, last * step, marks)


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if abs(exponent) < 4 else f"1e{exponent}"


def _round_step(least: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
