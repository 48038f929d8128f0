"""Sequences of frames as honest peers sent them, and what is made of them: structure-aware, from a seed."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from paceline.wire.frames import BULK, HEADER_BYTES, FrameKind, Header

from .inprocess import ID

TRAINING = bytes.fromhex(ID)
Frame = tuple[Header, bytes]  # and its payload
NUMBERS = (0, 1, 2, 3, 255, (1 << 31) - 1, (1 << 32) - 1)
LONG_NUMBERS = (*NUMBERS, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
ODD_TEXTS = (
    "NaN", "-Infinity", "1e999", "-1", "0.5", "null", "true", "[]", "{}", '""', '"x"', "1" + "0" * 400, '"\\ud800"', '"nan"',
    "[" * 200 + "]" * 200, "9223372036854775808", '"' + "a" * 2000 + '"', "[[1]]", '{"a":{"b":[]}}', '"__class__"',
)  # fmt: skip


def frames(data: bytes) -> list[Frame]:
    """What one side of a connection sent."""
    found = []
    while data:
        header = Header.unpack(data[:HEADER_BYTES])
        end = HEADER_BYTES + header.nbytes
        found.append((header, data[HEADER_BYTES:end]))
        data = data[end:]
    return found


def as_of(frame: Frame, worker: int) -> Frame:
    """The same from another sender."""
    return replace(frame[0], worker=worker), frame[1]


class Mutator:
    """Makes something of a sequence: bytes to be sent after HELLO, which may be mutated too."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self._ways: Sequence[Callable[[list[Frame]], None]] = (
            self._drop, self._repeat, self._swap, self._number, self._number, self._kind, self._json, self._json,
            self._json, self._payload, self._length, self._move,
        )  # fmt: skip

    def __call__(self, sequence: Sequence[Frame]) -> list[bytes]:
        """The frames to be sent, one by one; the last may be cut."""
        made = list(sequence)
        for _ in range(self.chance.choice((1, 1, 1, 2, 3, 5))):
            if made:
                self.chance.choice(self._ways)(made)
        out = [header.pack() + payload for header, payload in made]
        if out and self.chance.random() < 0.15:
            out[-1] = self._damaged(out[-1])
        return out

    def _place(self, made: list[Frame]) -> int:
        return self.chance.randrange(len(made))

    def _drop(self, made: list[Frame]) -> None:
        del made[self._place(made)]

    def _repeat(self, made: list[Frame]) -> None:
        made.insert(self._place(made), made[self._place(made)])

    def _swap(self, made: list[Frame]) -> None:
        a, b = self._place(made), self._place(made)
        made[a], made[b] = made[b], made[a]

    def _move(self, made: list[Frame]) -> None:
        made.insert(self._place(made), made.pop(self._place(made)))

    def _number(self, made: list[Frame]) -> None:
        place, name = (
            self._place(made),
            self.chance.choice(("worker", "incarnation", "step", "version", "bucket", "flags")),
        )
        header, payload = made[place]
        numbers = (0, 1, 65535) if name == "flags" else LONG_NUMBERS if name in ("step", "version") else NUMBERS
        near = max(0, getattr(header, name) + self.chance.choice((-1, 1))) & 0xFFFF
        made[place] = replace(header, **{name: self.chance.choice((*numbers, near))}), payload

    def _kind(self, made: list[Frame]) -> None:
        place = self._place(made)
        header, payload = made[place]
        made[place] = replace(header, kind=self.chance.choice(list(FrameKind))), payload

    def _length(self, made: list[Frame]) -> None:
        place = self._place(made)
        header, payload = made[place]
        nbytes = self.chance.choice((0, 1, len(payload) + 1, max(0, len(payload) - 1), 1 << 16, 1 << 32, (1 << 64) - 1))
        made[place] = replace(header, nbytes=nbytes), payload

    def _payload(self, made: list[Frame]) -> None:
        place = self._place(made)
        header, payload = made[place]
        if payload:
            made[place] = header, self._damaged(payload)[: len(payload)].ljust(len(payload), b"\x00")

    def _json(self, made: list[Frame]) -> None:
        """Another value in the place of one in some control frame, or another name."""
        places = [i for i, (header, payload) in enumerate(made) if header.kind not in BULK and payload]
        if not places:
            return
        place = self.chance.choice(places)
        header, payload = made[place]
        try:
            value = json.loads(payload)
        except ValueError:
            return
        mark = "\x00here\x00"
        text = json.dumps(self._marked(value, mark), separators=(",", ":"))
        new = text.replace(json.dumps(mark), self.chance.choice(ODD_TEXTS)).encode()
        made[place] = replace(header, nbytes=len(new)), new

    def _marked(self, value: object, mark: str) -> object:
        """The value with one place of it replaced."""
        items = (
            list(value.items())
            if isinstance(value, dict)
            else list(enumerate(value))
            if isinstance(value, list)
            else []
        )
        if not items or self.chance.random() < 0.15:
            return mark
        key, inner = self.chance.choice(items)
        if isinstance(value, dict):
            way = self.chance.random()
            if way < 0.1:
                return {k: v for k, v in items if k != key}
            return {**value, (mark[1:-1] if way < 0.2 else key): self._marked(inner, mark)}
        assert isinstance(value, list)
        return [self._marked(v, mark) if i == key else v for i, v in items]

    def _damaged(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.chance.randrange(1, 5)):
            changed[self.chance.randrange(len(changed))] = self.chance.randrange(256)
        return bytes(changed[: self.chance.randrange(1, len(changed) + 1)])
