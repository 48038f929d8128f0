"""The final weights: each shard writes its slices, and `merge` makes one safetensors file of them."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from paceline.signature import Signature

FILE = "weights.safetensors"
SIGNATURE = "signature.json"


def shard_file(ordinal: int | str) -> str:
    """Name of one shard's file; its tensors are named `index:start` (optimizer order, first element) or by name."""
    return f"weights-ps-{ordinal}.safetensors"


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file whole or not at all; tensors that share memory are written separately."""
    temporary = path.with_suffix(".tmp")
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, temporary)
    os.replace(temporary, path)


def statics(signature: Signature, frozen: bytes, buffers: bytes) -> dict[str, torch.Tensor]:
    """Frozen parameters and buffers from the bytes that worker 0 sent, by name."""
    found = {}
    for infos, data in ((signature.frozen, frozen), (signature.buffers, buffers)):
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        start = 0
        for info in infos:
            piece = raw[start : start + info.nbytes].clone()
            found[info.name] = piece.view(getattr(torch, info.dtype)).view(info.shape)
            start += info.nbytes
    return found


def merge(folder: Path) -> str:
    """Write weights.safetensors from the shards' files and remove them; gives the SHA-256 of what is there.

    Raises FileNotFoundError when the servers wrote nothing.
    """
    target = folder / FILE
    if not target.exists():
        signature = Signature.from_json(json.loads((folder / SIGNATURE).read_text()))
        parts = sorted(folder.glob(shard_file("*")))
        pieces = {name: tensor for part in parts for name, tensor in load_file(part).items()}
        save(_tensors(signature, pieces), target)
        for part in parts:
            part.unlink()
    return hashlib.sha256(target.read_bytes()).hexdigest()


def _tensors(signature: Signature, pieces: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    cut: dict[int, list[tuple[int, torch.Tensor]]] = {}
    for name, piece in pieces.items():
        index, colon, start = name.partition(":")
        if colon and index.isdigit():
            cut.setdefault(int(index), []).append((int(start), piece))
    found = {}
    for i, info in enumerate(signature.parameters):
        slices = [piece for _, piece in sorted(cut.get(i, []), key=lambda item: item[0])]
        empty = torch.empty(0, dtype=getattr(torch, info.dtype))
        found[info.name] = torch.cat(slices or [empty]).view(info.shape)
    for info in signature.frozen + signature.buffers:
        if info.name not in signature.transient:
            found[info.name] = pieces[info.name]
    return found | {alias: found[name] for alias, name in signature.aliases.items() if name in found}
