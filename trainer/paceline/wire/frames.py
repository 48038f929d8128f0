"""Frames: a fixed header of 60 bytes in network order, then as many bytes of payload as it says.

    magic "PACE" | version u8 | kind u8 | flags u16 | training id 16 bytes | worker u32 | incarnation u32
    | step u64 | model version u64 | bucket u32 | byte count u64

Anything that is not such a header ends the connection (ProtocolError) before a byte of payload is read.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from paceline_core.errors import ProtocolError

MAGIC = b"PACE"
WIRE_VERSION = 1
LAYOUT = struct.Struct("!4sBBH16sIIQQIQ")
HEADER_BYTES = LAYOUT.size
CONTROL_LIMIT = 16 << 20  # bytes of JSON in one frame: a signature of about 100,000 parameters


class Kind(IntEnum):
    """What a frame means. Comments: sender -> receiver, payload."""

    HELLO = 1  # any -> server, JSON: role, channel, signature
    READY = 2  # server -> any, JSON: the connection is accepted
    INITIAL = 3  # worker 0 -> server, bytes of one bucket of the first parameters
    JOIN = 4  # worker -> server: everything sent, let me in
    PUSH = 5  # worker -> server, bytes of one bucket of gradients; may be sent again before COMMIT
    COMMIT = 6  # worker -> server, JSON: the push is complete
    APPLIED = 7  # server -> worker, JSON: accepted (or admitted); PARAMETERS follow
    REJECTED = 8  # server -> worker, JSON: reason; PARAMETERS follow
    PARAMETERS = 9  # server -> worker, bytes of one bucket
    STATICS = 10  # bytes: buffers and frozen parameters, both ways
    REPORT = 11  # worker -> server 0, JSON: rows of steps
    LEAVE = 12  # worker -> server 0, JSON: this worker is done
    ERROR = 13  # any -> any, JSON: kind, message
    ARRIVED = 14  # server k -> server 0, JSON: a worker's push or join is complete here
    ORDER = 15  # server 0 -> server k, JSON: actions to carry out
    STORE = 16  # worker -> coordinator, JSON: an operation on the store
    VALUE = 17  # server 0 or coordinator -> worker, JSON: its result
    CLOCK = 18  # worker -> server 0 or coordinator: what time is it? A VALUE answers
    WAITING = 19  # coordinator -> worker: do you wait for others? The same back, JSON: in which step
    END = 20  # server 0 -> server k, JSON: the training is over, nothing more will come


BULK = {Kind.INITIAL, Kind.PUSH, Kind.PARAMETERS, Kind.STATICS}


@dataclass(frozen=True)
class Header:
    """One frame's header; `nbytes` counts the payload."""

    kind: Kind
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
        return LAYOUT.pack(
            MAGIC, WIRE_VERSION, self.kind, self.flags, self.training, self.worker, self.incarnation,
            self.step, self.version, self.bucket, self.nbytes,
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
            kind = Kind(kind)
        except ValueError:
            raise ProtocolError("bad_kind", f"frame of unknown kind {kind}") from None
        if kind not in BULK and nbytes > CONTROL_LIMIT:
            raise ProtocolError(
                "too_large", f"a {kind.name} frame of {nbytes} bytes; at most {CONTROL_LIMIT} are allowed"
            )
        return cls(kind, training, worker, incarnation, step, version, bucket, nbytes, flags)


def to_json(value: Mapping[str, Any]) -> bytes:
    """A control frame's payload."""
    return json.dumps(value, separators=(",", ":")).encode()


def from_json(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Read a control frame's payload. Raises ProtocolError when it is not a JSON object."""
    try:
        value = json.loads(bytes(data))
    except (ValueError, RecursionError):
        raise ProtocolError("bad_payload", "a control frame whose payload is not JSON") from None
    if not isinstance(value, dict):
        raise ProtocolError("bad_payload", "a control frame whose payload is not a JSON object")
    return value
