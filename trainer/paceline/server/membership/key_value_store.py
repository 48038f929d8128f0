"""What workers hold in common: keys with values for a rendezvous, texts to compare, and values gathered from all."""

import base64
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from paceline.server.membership.gathering import Gathering
from paceline.server.membership.membership import Membership
from paceline.wire.channel import Channel
from paceline.wire.frames import UNREADABLE, VALUE_LIMIT, FrameKind, Header
from paceline_core import limits
from paceline_core.errors import PeerLost, ProtocolError, UsageError
from paceline_core.limits import START, STEP, Limit

KEY_LIMIT = 1024  # characters of a key
FIRST_BYTES, PAIR_BYTES, TOTAL_LIMIT = 32 << 20, 256, 256 << 20  # of all keys: for all, for two workers, at most
KEY_BYTES = 256  # that a key takes beside its characters and its value
CHANGES = ("set", "add", "compare_set", "delete")  # their questions are numbered, for each is answered once
FIRST = "paceline/first/"  # before the names of what worker 0 said first
COUNTER_LIMIT = 1 << 62
COMPARISONS = 4096  # the newest are kept
REPLY_CHARACTERS = VALUE_LIMIT  # of gathered values in one frame: a backslash of theirs takes four bytes
Ask = dict[str, Any]
Operation = Callable[["Asker", Ask], Any]


@dataclass(frozen=True)
class Asker:
    """The process that asks, and its connection."""

    worker: int
    incarnation: int
    number: int  # of the question
    channel: Channel


class Keys:
    """The keys and their values; waits are limited and end when the training fails."""

    def __init__(self, membership: Membership) -> None:
        self._membership, self._values, self._nbytes = membership, dict[str, bytes](), 0
        self._room = min(TOTAL_LIMIT, FIRST_BYTES + PAIR_BYTES * membership.world_size**2)

    def set(self, key: str, value: bytes) -> None:
        """Set a key. Raises UsageError when there is no room."""
        with self._membership.changed:
            before = self._values.get(key)
            nbytes = self._nbytes + len(value) - len(before or b"") + (before is None) * (len(key) + KEY_BYTES)
            if len(key) > KEY_LIMIT or nbytes > self._room:
                raise UsageError(f"no room for the key {key[:40]!r}: {nbytes} bytes of {self._room} would be taken")
            self._values[key], self._nbytes = value, nbytes
            self._membership.changed.notify_all()

    def get(self, key: str, timeout: float, peer: Channel) -> bytes:
        """Wait for a key and give its value. Raises PeerLost."""
        self.wait([key], timeout, peer)
        with self._membership.changed:
            return self._values[key]

    def wait(self, keys: list[str], timeout: float, peer: Channel) -> None:
        """Wait until all keys are set. Raises PeerLost, naming the workers that have not come yet."""
        if not self._wait(lambda: self.check(keys), timeout, peer):
            missing = ", ".join(self._membership.missing()) or "another worker"
            raise PeerLost(f"waited {limits.words(timeout)} for {missing} to call paceline.distribute()")

    def get_from(self, worker: int, key: str, timeout: float, call: str, peer: Channel) -> bytes:
        """Wait for a key that this worker sets when it makes `call`. Raises PeerLost, also when it has left."""
        with self._membership.changed:
            self._wait(lambda: key in self._values or worker in self._membership.away(), timeout, peer)
            if key not in self._values:
                away = self._membership.away().get(worker)
                waited = f"waited {limits.words(timeout)} for worker-{worker} to call {call}"
                raise PeerLost(f"worker-{worker} {away}: it will not call {call}" if away else waited)
            return self._values[key]

    def _wait(self, condition: Callable[[], bool], timeout: float, peer: Channel) -> bool:
        with self._membership.changed:
            found = self._membership.wait_for(
                lambda: self._membership.failure is not None or condition(), timeout, peer
            )
            if self._membership.failure is not None:
                raise self._membership.failure
        return found

    def add(self, key: str, amount: int) -> int:
        """Add to a counter and give its value."""
        with self._membership.changed:
            value = int(self._values.get(key, b"0")) + amount
            if abs(value) > COUNTER_LIMIT:
                raise ValueError(f"a counter of {value}")
            self.set(key, str(value).encode())
            return value

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:
        """Set a key if it has the expected value, or is absent and `expected` is empty; gives the value it has then."""
        with self._membership.changed:
            now = self._values.get(key)
            if now == expected or (now is None and not expected):
                self.set(key, desired)
            return self._values.get(key, expected)

    def delete(self, key: str) -> bool:
        """Remove a key; False when there was none."""
        with self._membership.changed:
            gone = self._values.pop(key, None)
            self._nbytes -= 0 if gone is None else len(gone) + len(key) + KEY_BYTES
            return gone is not None

    def all(self) -> dict[str, bytes]:
        """All keys and values."""
        with self._membership.changed:
            return dict(self._values)

    def count(self) -> int:
        """How many keys there are."""
        with self._membership.changed:
            return len(self._values)

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are set."""
        with self._membership.changed:
            return all(k in self._values for k in keys)


class Comparisons:
    """What the first worker said under a name, to compare what the others say; nobody waits."""

    def __init__(self) -> None:
        self._said: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._lock = threading.Lock()

    def differs_from(self, worker: int, name: str, text: str) -> int | None:
        """The worker that said something else under this name, if there is one."""
        with self._lock:
            first, said = self._said.setdefault(name, (worker, text))
            if len(self._said) > COMPARISONS:
                self._said.popitem(last=False)
        return None if said == text else first


class KeyValueStore:
    """Serves the store connection of every worker, on shard 0 or the coordinator."""

    def __init__(
        self,
        membership: Membership,
        patience: float,
        left: Callable[[int, int], None],
        gathered: Callable[[], None],
    ) -> None:
        self._membership, self._patience, self._left = membership, patience, left
        self.keys, self._comparisons = Keys(membership), Comparisons()
        self._changed: dict[int, tuple[int, int, Any]] = {}  # each worker's last change: incarnation, number, answer
        self._changing = threading.Lock()
        self.gathering = Gathering(membership, patience, gathered)
        self._operations: dict[str, Operation] = {
            "set": lambda _, ask: self.keys.set(str(ask["key"]), base64.b64decode(ask["value"])),
            "get": lambda asker, ask: _text(self.keys.get(str(ask["key"]), self._limit(ask), asker.channel)),
            "wait": lambda asker, ask: self.keys.wait([str(k) for k in ask["keys"]], self._limit(ask), asker.channel),
            "check": lambda _, ask: self.keys.check([str(k) for k in ask["keys"]]),
            "add": lambda _, ask: self.keys.add(str(ask["key"]), int(ask["amount"])),
            "compare_set": self._compare_set,
            "delete": lambda _, ask: self.keys.delete(str(ask["key"])),
            "count": lambda *_: self.keys.count(),
            "first": self._first,
            "agree": self._compare_texts,
            "leave": self._leave,
        }

    def offer(self, more: Mapping[str, Operation]) -> None:
        """Answer further operations too; before anybody asks."""
        self._operations |= more

    def serve(self, channel: Channel, hello: Header, _: Ask) -> None:
        """Serve one worker until its connection ends."""
        self._membership.connected(hello.worker, hello.incarnation)
        try:
            channel.send_json(Header(FrameKind.READY, channel.training), {})
            while True:
                header = channel.header(idle=True)
                self._answer(Asker(header.worker, header.incarnation, header.step, channel), channel.json(header))
        finally:
            self._membership.disconnected(hello.worker)

    def _answer(self, asker: Asker, ask: Ask) -> None:
        try:
            if ask.get("op") == "gather":
                self._gather(asker, ask)
                return
            operation = self._operations.get(str(ask["op"]))
            if operation is None:
                raise ProtocolError("bad_payload", f"unknown operation {ask['op']!r}")
            value = self._once(operation, asker, ask) if ask["op"] in CHANGES else operation(asker, ask)
        except UNREADABLE as error:
            raise ProtocolError("bad_payload", f"a STORE that cannot be read: {error}") from error
        _give(asker.channel, {"value": value})

    def _once(self, operation: Operation, asker: Asker, ask: Ask) -> Any:
        """Change something once, though it is asked again because a connection broke before the answer was there."""
        with self._changing:
            incarnation, number, answer = self._changed.get(asker.worker, (-1, 0, None))
            if (asker.incarnation, asker.number) != (incarnation, number) or not asker.number:
                answer = operation(asker, ask)
                self._changed[asker.worker] = asker.incarnation, asker.number, answer
        return answer

    def _gather(self, asker: Asker, ask: Ask) -> None:
        """Answer with every worker's value in rank order, in as many frames as they need."""
        call, what = (asker.incarnation, int(ask["call"])), str(ask["what"])[:KEY_LIMIT]
        values = self.gathering.gather(asker.worker, call, what, _small(ask["value"]), asker.channel)
        part, length = list[str](), 0
        for value in values:
            if part and length + len(value) > REPLY_CHARACTERS:
                _give(asker.channel, {"value": part, "more": True})
                part, length = [], 0
            part.append(value)
            length += len(value)
        _give(asker.channel, {"value": part})

    def _compare_set(self, _: Asker, ask: Ask) -> str:
        expected, desired = base64.b64decode(ask["expected"]), base64.b64decode(ask["desired"])
        return _text(self.keys.compare_set(str(ask["key"]), expected, desired))

    def firsts(self) -> dict[str, str]:
        """What worker 0 said first under each name, as `_first` tells it."""
        held = self.keys.all()
        return {key.removeprefix(FIRST): value.decode() for key, value in held.items() if key.startswith(FIRST)}

    def set_firsts(self, said: Mapping[str, str]) -> None:
        """What worker 0 said first in the run that this one goes on from."""
        for name, value in said.items():
            self.keys.set(f"{FIRST}{name}", value.encode())

    def _first(self, asker: Asker, ask: Ask) -> str:
        """What worker 0 said first under a name: later workers in its place are told the same."""
        key = f"{FIRST}{ask['name']}"
        if asker.worker == 0:
            return self.keys.compare_set(key, b"", _small(ask["value"]).encode()).decode()
        return self.keys.get_from(0, key, self._patience, str(ask["waits_for"]), asker.channel).decode()

    def _compare_texts(self, asker: Asker, ask: Ask) -> int | None:
        name, text = str(ask["name"]), str(ask["text"])
        if len(name) + len(text) > KEY_LIMIT:
            raise ValueError("too long")
        return self._comparisons.differs_from(asker.worker, name, text)

    def _leave(self, asker: Asker, _: Ask) -> None:
        """A script that used the store but never distributed a model has ended well."""
        if self._membership.is_newest(asker.worker, asker.incarnation):
            self._left(asker.worker, asker.incarnation)
            self._membership.leave(asker.worker, asker.incarnation)

    def _limit(self, ask: Ask) -> float:
        asked = float(ask.get("timeout", self._patience))
        if not asked >= 0:
            raise ValueError(f"a time-out of {asked}")
        return Limit(asked, f"{START} or {STEP}") if asked < self._patience else self._patience


def _give(channel: Channel, value: Ask) -> None:
    channel.send_json(Header(FrameKind.VALUE, channel.training), value)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _small(value: object) -> str:
    if not isinstance(value, str) or len(value) > VALUE_LIMIT:
        raise ValueError(f"a value must be a text of at most {VALUE_LIMIT} characters")
    return value
