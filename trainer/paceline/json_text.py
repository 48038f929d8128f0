"""JSON as everybody reads it: it has no NaN and no infinity, so that numbers which are not finite stand as null."""

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, indent: int | None = None, separators: tuple[str, str] | None = None) -> str:
    """The value as text."""
    try:
        return json.dumps(value, indent=indent, separators=separators, allow_nan=False)
    except ValueError:  # there is one, which is rare: only then everything is walked through
        return json.dumps(finite(value), indent=indent, separators=separators, allow_nan=False)


def finite(value: Any) -> Any:
    """The value with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value
