"""How frozen parameters and buffers travel: in one frame, those that changed, by their numbers in the signature.

count u32 | number u32, count times | the bytes of each, in the same order
"""

import struct
from collections.abc import Mapping, Sequence

from paceline.model_signature import TensorInfo
from paceline_core.errors import ProtocolError

WORD = 4


def encode(given: Mapping[int, bytes | memoryview]) -> list[memoryview]:
    """The payload of a STATICS frame, in pieces."""
    numbers = struct.pack(f"!{len(given) + 1}I", len(given), *given)
    return [memoryview(numbers), *(memoryview(data) for data in given.values())]


def limit(infos: Sequence[TensorInfo]) -> int:
    """The size of the largest payload, in bytes."""
    return WORD * (1 + len(infos)) + sum(info.nbytes for info in infos)


def decode(payload: bytes | bytearray, infos: Sequence[TensorInfo]) -> dict[int, bytes]:
    """Read a payload. Raises ProtocolError."""
    try:
        (count,) = struct.unpack_from("!I", payload)
        if count > len(infos):
            raise ProtocolError("bad_payload", f"{count} tensors, of {len(infos)} that there are")
        numbers = struct.unpack_from(f"!{count}I", payload, WORD)
        sizes = [infos[number].nbytes for number in numbers]
    except (struct.error, IndexError) as error:
        raise ProtocolError("bad_payload", f"not a frame of buffers: {error}") from error
    start = WORD * (1 + count)
    if len(payload) != start + sum(sizes) or len(set(numbers)) != count:
        raise ProtocolError("bad_size", f"buffers of {len(payload)} bytes, {start + sum(sizes)} expected")
    found = {}
    for number, size in zip(numbers, sizes, strict=True):
        found[number] = bytes(payload[start : start + size])
        start += size
    return found
