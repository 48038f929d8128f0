"""Rows of steps as workers report them, checked: they go into a log, a page and sums."""

import math
from collections.abc import Mapping
from typing import Any

from paceline.terminal import printable
from paceline.wire.frames import number
from paceline_core.attribution import PHASES

SECONDS, COUNTS = ("time", "latency", "wall"), ("step", "version", "staleness")
COUNT_LIMIT = 1 << 63
REASON_LENGTH = 100  # characters


def checked(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its known fields alone. Raises one of frames.UNREADABLE."""
    loss, phases = row.get("loss"), row["phases"]
    return {
        **{name: whole(row[name]) for name in COUNTS},
        **{name: _finite(row[name]) for name in SECONDS},
        "phases": {phase: _finite(phases[phase]) for phase in PHASES if phase in phases},
        "loss": None if loss is None else float(number(loss)),
        "accepted": bool(row["accepted"]),
        "reason": printable(str(row["reason"]), REASON_LENGTH),
    }


def whole(value: Any) -> int:
    """A count. Raises ValueError."""
    if type(value) is not int or not 0 <= value < COUNT_LIMIT:
        raise ValueError(f"{str(value)[:20]} is no count")
    return value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError(f"{str(value)[:20]} is no number")
    return float(value)
