"""The servers' slices of the weights made into one safetensors file for each model, by their bytes: it needs no torch.

So a run need not wait for the import of torch at its end. What is written is what `paceline.weights.save` would write.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from safetensors import TensorSpec, deserialize, serialize_file

from paceline.files import private_writing
from paceline.model_signature import Signature, TensorInfo
from paceline.weight_files import FILE, file, shard_file, signature_file

PLAIN = ("float16", "float32", "float64", "complex64")  # numpy knows these by their names
EXPONENT, FRACTION = 0x7F80, 0x007F  # of a bfloat16: all ones, and whether it is NaN


@dataclass(frozen=True)
class Stored:
    """A tensor as its bytes; `dtype` as torch names it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def merge(folder: Path) -> tuple[str, str | None]:
    """Write the files of weights from the shards' files and remove them.

    Gives the SHA-256 of what is there, and the first tensor that is not finite; of an all-reduce worker 0 tells that.

    Raises FileNotFoundError when the servers wrote nothing.
    """
    odd = None
    if not (folder / FILE).exists():
        models: dict[int, dict[str, Stored]] = {}
        trained: dict[int, dict[str, Stored]] = {}
        aliases: dict[int, dict[str, str]] = {}
        pair = 0
        while pair == 0 or (folder / signature_file(pair)).exists():
            signature = Signature.from_json(json.loads((folder / signature_file(pair)).read_text()))
            pieces = _pieces(folder, pair)
            models.setdefault(signature.model, {}).update(_untrained(signature, pieces))
            trained.setdefault(signature.model, {}).update(_trained(signature, pieces))
            aliases.setdefault(signature.model, {}).update(signature.aliases)
            pair += 1
        for model, tensors in models.items():
            whole = tensors | trained[model]
            odd = odd or first_not_finite(trained[model], tensors)
            whole |= {alias: whole[name] for alias, name in aliases[model].items() if name in whole}
            _save(whole, folder / file(model))
        for part in folder.glob(shard_file("*")):
            part.unlink()
    written = [folder / FILE, *sorted(folder.glob("weights-[0-9]*.safetensors"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in written)).hexdigest(), odd


def first_not_finite(trained: Mapping[str, Stored], untrained: Mapping[str, Stored]) -> str | None:
    """The name of the first tensor that holds NaN or, if it is trained, an infinity: a mask may be made of them."""
    for name, tensor in trained.items():
        if not _is_finite(tensor, infinities=False):
            return name
    return next((name for name, tensor in untrained.items() if not _is_finite(tensor, infinities=True)), None)


def _is_finite(tensor: Stored, infinities: bool) -> bool:
    """Whether it is; with `infinities` these are allowed."""
    if tensor.dtype in PLAIN:
        values = numpy.frombuffer(tensor.data, dtype=tensor.dtype)
        return not numpy.isnan(values).any() if infinities else bool(numpy.isfinite(values).all())
    if tensor.dtype == "bfloat16":
        bits = numpy.frombuffer(tensor.data, dtype=numpy.uint16)
        special = bits[bits & EXPONENT == EXPONENT]
        return not (special & FRACTION).any() if infinities else not len(special)
    return True  # a whole number


def _save(tensors: Mapping[str, Stored], path: Path) -> None:
    """Write a safetensors file whole or not at all."""
    temporary = path.with_suffix(".tmp")
    memory = {name: numpy.frombuffer(it.data, dtype=numpy.uint8) for name, it in tensors.items()}  # held while written
    specs = {
        name: TensorSpec(dtype=it.dtype, shape=it.shape, data_ptr=memory[name].ctypes.data, data_len=len(it.data))
        for name, it in tensors.items()
    }
    serialize_file(specs, temporary)
    temporary.chmod(private_writing.FILE)
    os.replace(temporary, path)


def _pieces(folder: Path, pair: int) -> dict[str, bytes]:
    parts = sorted(folder.glob(shard_file("*", pair)))
    if pair == 0:  # the pattern fits the further pairs' files too
        parts = [p for p in parts if p.name.count(".") == 1]
    return {name: bytes(it["data"]) for part in parts for name, it in _tensors(part.read_bytes())}


def _tensors(data: bytes) -> Iterable[tuple[str, Mapping[str, Any]]]:
    return deserialize(data)  # type: ignore[no-untyped-call, no-any-return]


def _trained(signature: Signature, pieces: Mapping[str, bytes]) -> dict[str, Stored]:
    cut: dict[int, list[tuple[int, bytes]]] = {}
    for name, piece in pieces.items():
        index, colon, start = name.partition(":")
        if colon and index.isdigit():
            cut.setdefault(int(index), []).append((int(start), piece))
    return {info.name: _joined(info, sorted(cut.get(i, []))) for i, info in enumerate(signature.parameters)}


def _joined(info: TensorInfo, pieces: Sequence[tuple[int, bytes]]) -> Stored:
    data = b"".join(piece for _, piece in pieces)
    if len(data) != info.nbytes:
        raise ValueError(f"of {info.name} there are {len(data)} bytes, and {info.nbytes} are wanted")
    return Stored(info.dtype, tuple(info.shape), data)


def _untrained(signature: Signature, pieces: Mapping[str, bytes]) -> dict[str, Stored]:
    kept = [info for info in signature.untrained if info.name not in signature.transient]
    return {info.name: Stored(info.dtype, tuple(info.shape), pieces[info.name]) for info in kept}
