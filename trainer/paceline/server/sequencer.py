"""Shard 0's part: it decides once for all shards, in one order, and the other shards follow that order.

A push counts as arrived when every shard holds it whole; only then the state machine hears of it. So a push is applied
on all shards or on none, its delay is the same everywhere, and a worker that dies while sending leaves no trace.
"""

import csv
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any, Protocol

from paceline_core import strategy
from paceline_core.errors import ProtocolError
from paceline_core.replay import Entry, entries
from paceline_core.strategy import Action, Event, Joined, Left, Pushed

Key = tuple[str, int, int, int]  # kind, worker, incarnation, step
COLUMNS = [f.name for f in fields(Entry)]


class Machine(Protocol):
    """The state machine, live or replayed."""

    def advance(self, event: Event) -> "tuple[Machine, tuple[Action, ...]]":
        """The state after the event, and what is to be done."""

    def waiting_for(self) -> tuple[int, ...]:
        """The workers that the others wait for."""


class ArrivalLog:
    """The order in which pushes were handled, one CSV row each: enough to replay the run."""

    def __init__(self, folder: str | None, ordinal: int) -> None:
        self._file = Path(folder, f"arrivals-ps-{ordinal}.csv").open("w", newline="") if folder else None
        self._rows = csv.writer(self._file) if self._file else None
        if self._rows:
            self._rows.writerow(COLUMNS)

    def write(self, actions: Sequence[Action], event: Event) -> None:
        """Log the actions of one event."""
        if self._rows and self._file:
            rows = [astuple(e) for e in entries(tuple(actions), event)]
            self._rows.writerows(rows)
            self._file.flush()

    def close(self) -> None:
        """Flush and close."""
        if self._file:
            self._file.close()


def read_arrivals(path: Path) -> list[Entry]:
    """Read an arrival log. Raises ValueError when it is not one."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [
            Entry(**{k: (v if k in ("kind", "reason") else int(v)) for k, v in row.items()})  # type: ignore[arg-type]
            for row in rows
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a log of arrivals: {error}") from error


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

    def waiting_for(self) -> tuple[int, ...]:
        """The workers that the others wait for now."""
        with self._lock:
            return self._machine.waiting_for()

    def _decide(self, event: Event) -> None:
        self._machine, actions = self._machine.advance(event)
        self._give(event, actions)


def to_wire(event: Event, actions: Sequence[Action]) -> dict[str, Any]:
    """An order, as JSON."""
    return {"event": _pack(event), "actions": [_pack(a) for a in actions]}


def from_wire(order: dict[str, Any]) -> tuple[Event, list[Action]]:
    """Read an order."""
    return _unpack(order["event"]), [_unpack(a) for a in order["actions"]]


def event_to_wire(event: Event) -> dict[str, Any]:
    """An event, as JSON."""
    return _pack(event)


def event_from_wire(value: dict[str, Any]) -> Joined | Pushed:
    """Read an event. Raises ProtocolError."""
    try:
        event = _unpack(value)
    except (KeyError, TypeError, AttributeError) as error:
        raise ProtocolError("bad_payload", f"not an event: {error}") from error
    if not isinstance(event, Joined | Pushed):
        raise ProtocolError("bad_payload", "neither a push nor a join")
    return event


def _pack(item: Event | Action) -> dict[str, Any]:
    return {"type": type(item).__name__, **asdict(item)}


def _unpack(value: dict[str, Any]) -> Any:
    kind = getattr(strategy, value.pop("type"))
    if kind is strategy.Apply:
        value["pushes"] = tuple(Pushed(**p) for p in value["pushes"])
    return kind(**value)
