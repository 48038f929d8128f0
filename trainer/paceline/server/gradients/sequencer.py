"""Shard 0's part: it decides once for all shards, in one order, and the other shards follow that order.

A push counts as arrived when every shard holds it whole; only then the state machine hears of it. So a push is applied
on all shards or on none, its delay is the same everywhere, and a worker that dies while sending leaves no trace.
"""

import csv
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from paceline.files import bounded_reading
from paceline.terminal import printable
from paceline_core.errors import ProtocolError, ReplayError, SpecError
from paceline_core.launch import Launch
from paceline_core.replay import Entry, entries, follow
from paceline_core.state_machine import (
    Action,
    Admit,
    Apply,
    Event,
    Joined,
    Left,
    Pushed,
    Reject,
    Repeat,
    Reply,
    Save,
    start,
)  # fmt: skip

Key = tuple[str, int, int, int]  # kind, worker, incarnation, step
COLUMNS = list(Entry._fields)
MESSAGES: Mapping[str, Any] = {m.__name__: m for m in (Joined, Left, Pushed, Admit, Apply, Reply, Reject, Repeat, Save)}
FIELDS = {"pushes": tuple, "factor": float, "reason": str, "asks": bool, "last": bool}  # all others are whole numbers
MOST_DIGITS = 19  # of a number: 64 bits


class Machine(Protocol):
    """The state machine, live or replayed."""

    def advance(self, event: Event) -> "tuple[Machine, tuple[Action, ...]]":
        """The state after the event, and what is to be done."""

    def waiting_for(self) -> tuple[int, ...]:
        """The workers that the others wait for."""


def arrivals_file(ordinal: int, pair: int = 0) -> str:
    """Name of the log of one shard; a script's second pair of a model and an optimizer has number 1."""
    return f"arrivals-ps-{ordinal}{f'.{pair}' if pair else ''}.csv"


class ArrivalLog:
    """The order in which pushes were handled, one CSV row each: enough to replay the run."""

    def __init__(self, folder: str | None, ordinal: int, pair: int = 0) -> None:
        self._file = Path(folder, arrivals_file(ordinal, pair)).open("w", newline="") if folder else None
        self._rows = csv.writer(self._file) if self._file else None
        if self._rows:
            self._rows.writerow(COLUMNS)

    def write(self, actions: Sequence[Action], event: Event) -> None:
        """Log the actions of one event."""
        if self._rows and self._file:
            self._rows.writerows(entries(actions, event))
            self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        if self._file:
            self._file.close()


def read_arrivals(path: Path, most: int | None = None) -> list[Entry]:
    """Read an arrival log, or its first `most` entries. Raises ReplayError when it is not one."""
    try:
        file = bounded_reading.opened(path.parent, path.name)
    except SpecError as error:
        raise ReplayError(str(error)) from None
    if file is None:
        raise ReplayError(f"{path}: there is no such file")
    with file:
        try:
            rows = csv.reader(_lines(file), strict=True)
            if next(rows, None) != COLUMNS:
                raise ValueError(f"its first line is not {','.join(COLUMNS)}")
            return [_entry(row) for row in islice(rows, most)]
        except (ValueError, csv.Error) as error:
            raise ReplayError(f"{path} is not a log of arrivals: {error}") from error


def _lines(file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(bounded_reading.lines(file), start=1):
        if line is None:
            raise ValueError(f"line {number} does not end")
        yield line


def _entry(row: Sequence[str]) -> Entry:
    if len(row) != len(COLUMNS) or any(len(number) > MOST_DIGITS for number in row[1:-1]):
        raise ValueError(f"{printable(','.join(row), 60)!r} is no line of it")
    kind, *numbers, reason = row
    version, worker, incarnation, step, delay = map(int, numbers)
    return Entry(kind, version, worker, incarnation, step, delay, reason)


class Sequencer:
    """Collects arrivals from all shards, asks the machine, and gives the orders."""

    def __init__(self, machine: Machine, shards: int, give: Callable[[Event, Sequence[Action]], None]) -> None:
        self._machine, self._shards, self._give = machine, shards, give
        self._seen: dict[Key, set[int]] = {}
        self._lock = threading.Lock()
        self.arrivals: dict[int, float] = {}  # when each worker's last push was complete, on this clock

    def arrived(self, shard: int, event: Joined | Pushed) -> None:
        """One shard holds this push (or join) whole."""
        step = event.step if isinstance(event, Pushed) else 0
        key = (type(event).__name__, event.worker, event.incarnation, step)
        with self._lock:
            shards = self._seen.setdefault(key, set())
            shards.add(shard)
            if len(shards) == self._shards:
                del self._seen[key]
                self.arrivals[event.worker] = time.monotonic()
                self._decide(event)

    def left(self, worker: int, incarnation: int) -> None:
        """A worker has left, in order or not."""
        with self._lock:
            self._decide(Left(worker, incarnation))

    def order(self, event: Event, actions: Sequence[Action]) -> None:
        """Give an order that is not the machine's, in its place among the others."""
        with self._lock:
            self._give(event, actions)

    def waiting_for(self) -> tuple[int, ...]:
        """The workers that the others wait for now."""
        with self._lock:
            return self._machine.waiting_for()

    def _decide(self, event: Event) -> None:
        self._machine, actions = self._machine.advance(event)
        self._give(event, actions)


def machine(launch: Launch, pair: int, version: int) -> Machine:
    """The state machine of a pair that begins at this version, or one that follows another run. Raises ReplayError."""
    knobs = launch.spec.knobs
    if launch.replay:
        recorded = Path(launch.replay).with_name(arrivals_file(0, pair))
        return follow(read_arrivals(recorded), knobs, launch.world_size)
    return start(knobs, launch.world_size, version)


def to_wire(pair: int, event: Event, actions: Sequence[Action]) -> dict[str, Any]:
    """An order, as JSON."""
    return {"pair": pair, "event": _pack(event), "actions": [_pack(a) for a in actions]}


def from_wire(order: dict[str, Any]) -> tuple[int, Event, list[Action]]:
    """Read an order. Raises ProtocolError."""
    try:
        return int(order["pair"]), _unpack(order["event"]), [_unpack(a) for a in order["actions"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError("bad_payload", f"not an order: {error}") from error


def event_to_wire(pair: int, event: Event) -> dict[str, Any]:
    """An event, as JSON."""
    return {"pair": pair, "event": _pack(event)}


def event_from_wire(value: dict[str, Any]) -> tuple[int, Joined | Pushed]:
    """Read an event. Raises ProtocolError."""
    try:
        pair, event = int(value["pair"]), _unpack(value["event"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProtocolError("bad_payload", f"not an event: {error}") from error
    if not isinstance(event, Joined | Pushed):
        raise ProtocolError("bad_payload", "neither a push nor a join")
    return pair, event


def _pack(item: Event | Action) -> dict[str, Any]:
    told = {"type": type(item).__name__, **vars(item)}
    if isinstance(item, Apply):
        told["pushes"] = [vars(push) for push in item.pushes]
    return told


def _unpack(value: dict[str, Any]) -> Any:
    kind = MESSAGES[value.pop("type")]
    if kind is Apply:
        value["pushes"] = tuple(_unpack({"type": Pushed.__name__, **p}) for p in value["pushes"])
    found = kind(**value)
    for field in fields(kind):
        held = getattr(found, field.name)
        if type(held) is not FIELDS.get(field.name, int):
            raise ValueError(f"{field.name} of {kind.__name__} is {held!r}")
    return found
