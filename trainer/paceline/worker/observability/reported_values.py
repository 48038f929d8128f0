"""What a script reports, checked in its own thread: what is no number is left out there, with one warning."""

import logging
import threading
from collections.abc import Mapping
from typing import Any

import torch

MOST_NAMES, NAME_LENGTH = 100, 100  # different names in a run; characters of one
SHOWN = 3  # names in a warning
MOST_WARNINGS = 10
PLAIN = {torch.float32, torch.float64, torch.int64}  # what nearly every script reports
TOO_MANY = f"is one name too many: {MOST_NAMES} can be shown"
log = logging.getLogger("paceline")


class ReportedValues:
    """Remembers the names that were reported, and those that it has warned of. Safe to call from any thread."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._wrong: set[str] = set()
        self._warnings = 0
        self._lock = threading.Lock()

    def checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values that can be shown: numbers, and on a device copies, which are read later and not waited for here.

        A copy, because a script may go on to change what it reported.
        """
        found: dict[str, Any] = {}
        wrong: dict[str, str] = {}
        with self._lock:
            for name, value in values.items():
                number, problem = _number(value)
                if name not in self._known:
                    problem = self._name_problem(name) or problem
                if problem:
                    wrong[name] = problem
                else:
                    self._known.add(name)
                    found[name] = number
            if wrong:
                self._warn_once(wrong)
        return found

    def _warn_once(self, wrong: Mapping[str, str]) -> None:
        more = self._warnings < MOST_WARNINGS
        new = {name: problem for name, problem in wrong.items() if more and not {name, problem} & self._wrong}
        self._wrong.update(TOO_MANY if problem == TOO_MANY else name for name, problem in new.items())
        if new:
            self._warnings += 1
            _warn(new)

    def _name_problem(self, name: str) -> str:
        if not name or not name.isprintable() or len(name) > NAME_LENGTH:
            return f"has a name that is not 1 to {NAME_LENGTH} printable characters"
        if len(self._known) >= MOST_NAMES:
            return TOO_MANY
        return ""


def _number(value: Any) -> tuple[Any, str]:
    """A number, or a tensor on a device with one; and what is wrong with it."""
    if isinstance(value, torch.Tensor):
        return _from_tensor(value)
    kind = type(value).__qualname__
    if value is None or isinstance(value, str | bytes | bytearray):
        return None, "is None" if value is None else f"is a {kind}"
    if getattr(value, "size", 1) != 1:
        return None, f"is a {kind} of {value.size} elements"
    try:
        item = value.item() if hasattr(value, "item") else value  # of an array of numpy
        return float(item), ""
    except Exception as error:  # of whatever kind of object: reporting is not what a training may fail of
        return None, f"is a {kind} ({error})"


def _from_tensor(value: torch.Tensor) -> tuple[Any, str]:
    if value.numel() != 1:
        return None, f"is a tensor of {value.numel()} elements"
    if value.is_cpu and value.dtype in PLAIN and value.layout is torch.strided:
        return float(value.item()), ""
    if value.is_complex() or value.is_meta or value.layout is not torch.strided or value.is_quantized:
        return None, f"is a tensor of {value.dtype}, {value.layout}, on {value.device}"
    return (float(value.item()) if value.is_cpu else value.detach().clone()), ""


def _warn(wrong: Mapping[str, str]) -> None:
    told = ", ".join(f"{name[:NAME_LENGTH]!r} {problem}" for name, problem in list(wrong.items())[:SHOWN])
    more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    log.warning("paceline.report() takes numbers and tensors with one element; left out: %s%s", told, more)
