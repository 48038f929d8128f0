"""Frames: a fixed header of 60 bytes in network order, then as many bytes of payload as it says.

    magic "PACE" | version u8 | kind u8 | flags u16 | training id 16 bytes | worker u32 | incarnation u32
    | step u64 | model version u64 | bucket u32 | byte count u64

Anything that is not such a header ends the connection (ProtocolError) before a byte of payload is read.
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from paceline_core.errors import ProtocolError

MAGIC = b"PACE"
WIRE_VERSION = 3
LAYOUT = struct.Struct("!4sBBH16sIIQQIQ")
HEADER_BYTES = LAYOUT.size
CONTROL_LIMIT = 8 << 20  # bytes of JSON in one frame: a signature of about 50,000 parameters
ELEMENT_LIMIT = 800_000  # of JSON in one frame: with its text they take less than 64 MiB
WIDE_LIMIT, ESCAPE_SHARE = 4 << 20, 8  # bytes of JSON with a few characters that are not ASCII: they widen all others
PLACE_LIMIT = 16 << 20  # bytes of a worker's place (KEPT): where the script's own states take more, none is kept
VALUE_LIMIT = 1 << 20  # characters of one value that workers exchange: small things, as JSON


class FrameKind(IntEnum):
    """What a frame means. Comments: sender -> receiver, payload."""

    HELLO = 1  # any -> server, JSON: role, channel, signature
    READY = 2  # server -> any, JSON: the connection is accepted
    INITIAL = 3  # worker -> server, bytes of one bucket of parameters: worker 0's first ones, or what a script set
    JOIN = 4  # worker -> server: everything sent, let me in
    PUSH = 5  # worker -> server, bytes of one bucket of gradients; may be sent again before COMMIT
    COMMIT = 6  # worker -> server, JSON: the push is complete
    APPLIED = 7  # server -> worker, JSON: accepted (or admitted); PARAMETERS follow
    REJECTED = 8  # server -> worker, JSON: reason; PARAMETERS follow
    PARAMETERS = 9  # server -> worker, bytes of one bucket
    STATICS = 10  # bytes: buffers and frozen parameters that changed, both ways
    REPORT = 11  # worker -> server 0 or coordinator, JSON: rows of steps; `step` numbers the reports. READY answers
    LEAVE = 12  # worker -> server 0 or coordinator: this worker is done. READY answers
    ERROR = 13  # any -> any, JSON: kind, message
    ARRIVED = 14  # server k -> server 0, JSON: a worker's push or join is complete here
    ORDER = 15  # server 0 -> server k, JSON: actions to carry out
    STORE = 16  # worker -> server 0 or coordinator, JSON: an operation on the store
    VALUE = 17  # server 0 or coordinator -> worker, JSON: its result
    CLOCK = 18  # worker -> server 0 or coordinator: what time is it? A VALUE answers
    WAITING = 19  # coordinator -> worker: do you wait for others? The same back, JSON: in which step
    END = 20  # server 0 -> server k: the training is over, nothing more will come; the same back: it was heard
    ASK_STATE = 21  # worker -> server: the optimizer's state, please; a STATE answers
    STATE = 22  # bytes of a safetensors file: the optimizer's state of one shard, both ways
    NORM = 23  # server k -> server 0, JSON: the squared norm of an update's gradient here; back: of the whole
    # worker -> server 0, bytes: its state for the checkpoint of update `step`, READY answers; with no bytes: the state
    # to go on from, please, a SNAPSHOT answers
    SNAPSHOT = 24
    SAVED = 25  # server k -> server 0, JSON: this shard's files of a checkpoint are written
    # worker -> server 0, bytes: where it is after `step` updates of `bucket` optimizers, for one in its place; without
    # any it is not kept any more. READY answers
    KEPT = 26
    # server k -> server 0: this shard was told to end, save a checkpoint; back: it need not wait (any more)
    ENDING = 27


# With the texts at least one for each element, and more for what takes more memory.
MARKS = (b",", b"[", b"{", b"{", b":")
HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")  # two make one; alone it is none, and cannot be written
NOT_FINITE = ("nan", "inf", "-inf")
SMALL = (1 << 16, 1000)  # bytes and elements
LIMITS = {  # of control frames that are not large by their nature
    FrameKind.JOIN: SMALL,
    FrameKind.LEAVE: SMALL,
    FrameKind.ERROR: SMALL,
    FrameKind.ARRIVED: SMALL,
    FrameKind.CLOCK: SMALL,
    FrameKind.WAITING: SMALL,
    FrameKind.END: SMALL,
    FrameKind.ASK_STATE: SMALL,
    FrameKind.NORM: SMALL,
    FrameKind.SAVED: SMALL,
    FrameKind.ENDING: SMALL,
    FrameKind.REPORT: (CONTROL_LIMIT, ELEMENT_LIMIT),
    FrameKind.STORE: (CONTROL_LIMIT, 200_000),
}
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, OverflowError)  # what reading a wrong payload raises
BULK = {
    FrameKind.SNAPSHOT,
    FrameKind.KEPT,
    FrameKind.INITIAL,
    FrameKind.PUSH,
    FrameKind.PARAMETERS,
    FrameKind.STATICS,
    FrameKind.STATE,
}


@dataclass(frozen=True)
class Header:
    """One frame's header; `nbytes` counts the payload."""

    kind: FrameKind
    training: bytes
    worker: int = 0
    incarnation: int = 0
    step: int = 0
    version: int = 0
    bucket: int = 0
    nbytes: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        """The header's 60 bytes."""
        return self.pack_for(self.training, self.nbytes)

    def pack_for(self, training: bytes, nbytes: int) -> bytes:
        """The bytes of this header, but of a training and with a payload of so many bytes."""
        return LAYOUT.pack(
            MAGIC, WIRE_VERSION, self.kind, self.flags, training, self.worker, self.incarnation,
            self.step, self.version, self.bucket, nbytes,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> "Header":
        """Read a header. Raises ProtocolError for a wrong magic, version or kind, or too large a control frame."""
        magic, wire_version, kind, flags, training, worker, incarnation, step, version, bucket, nbytes = LAYOUT.unpack(
            data
        )
        if magic != MAGIC:
            raise ProtocolError("bad_magic", "the peer does not speak Paceline's protocol")
        if wire_version != WIRE_VERSION:
            raise ProtocolError(
                "bad_version", f"the peer speaks wire version {wire_version}, this process {WIRE_VERSION}"
            )
        try:
            kind = FrameKind(kind)
        except ValueError:
            raise ProtocolError("bad_kind", f"frame of unknown kind {kind}") from None
        most = LIMITS.get(kind, (CONTROL_LIMIT, 0))[0]
        if kind not in BULK and nbytes > most:
            raise ProtocolError("too_large", f"a {kind.name} frame of {nbytes} bytes; at most {most} are allowed")
        return cls(kind, training, worker, incarnation, step, version, bucket, nbytes, flags)


def to_json(value: Mapping[str, Any]) -> bytes:
    """A control frame's payload; a number that is not finite is spelled, and `number` reads it."""
    try:
        text = ENCODER.encode(value)
    except ValueError:  # there is one, which is rare: only then everything is walked through
        text = ENCODER.encode(_spelled(value))
    return text.encode()


def number(value: Any) -> Any:
    """The value, or the number that is not finite that it spells."""
    return float(value) if value in NOT_FINITE else value


def from_json(data: bytes | bytearray, kind: FrameKind = FrameKind.HELLO) -> dict[str, Any]:
    """Read a control frame's payload. Raises ProtocolError when it is not a JSON object, or has too many elements.

    They are counted before anything is built: a megabyte of empty lists takes sixty of memory.
    """
    most = LIMITS.get(kind, (0, ELEMENT_LIMIT))[1]
    if sum(data.count(mark) for mark in MARKS) + data.count(b'"') // 2 > most:
        raise ProtocolError("too_large", f"a {kind.name} frame of more than {most} elements")
    if len(data) > WIDE_LIMIT and 0 < data.count(b"\\u") * ESCAPE_SHARE < len(data):
        raise ProtocolError("too_large", f"a {kind.name} frame of long texts with a few characters beyond ASCII")
    try:
        value = DECODER.decode(data.decode("ascii"))
        if HALF_CHARACTER.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ProtocolError("bad_payload", "a control frame whose payload is not JSON of finite numbers") from None
    if not isinstance(value, dict):
        raise ProtocolError("bad_payload", "a control frame whose payload is not a JSON object")
    return value


def _spelled(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _spelled(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(each) for each in value]
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _not_finite(text: str) -> float:
    raise ValueError(text)


ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
DECODER = json.JSONDecoder(parse_constant=_not_finite, parse_float=_finite)
