"""The weights as files: each shard writes its slices, of which paceline/merged_weights.py makes one for each model."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from paceline.checkpoints.restoring import Restored
from paceline.files import private_writing
from paceline.model_signature import Signature


def save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file whole or not at all; tensors that share memory are written separately."""
    temporary = path.with_suffix(".tmp")
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, temporary)
    temporary.chmod(private_writing.FILE)
    os.replace(temporary, path)


def first_not_finite(
    trained: Iterable[tuple[str, torch.Tensor]], untrained: Iterable[tuple[str, torch.Tensor]]
) -> str | None:
    """The name of the first tensor that holds NaN or, if it is trained, an infinity: a mask may be made of them."""
    for name, tensor in trained:
        if _is_real(tensor) and not bool(torch.isfinite(_wide(tensor)).all()):
            return name
    for name, tensor in untrained:
        if _is_real(tensor) and bool(torch.isnan(_wide(tensor)).any()):
            return name
    return None


def untrained_tensors(signature: Signature, held: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
    """Frozen parameters and buffers from their bytes, by name."""
    found = {}
    for info in signature.untrained:
        dtype = getattr(torch, info.dtype)
        data = held.get(info.name, b"")
        flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype, device="cpu")
        found[info.name] = flat.view(info.shape)
    return found


def of_checkpoint(restored: Restored) -> dict[str, torch.Tensor]:
    """The state dict of the first model in a checkpoint. Raises CheckpointDamaged."""
    found: dict[str, torch.Tensor] = {}
    for pair in range(len(restored.manifest.versions)):
        signature = restored.signature(pair)
        if signature.model != 0:
            continue
        pieces: dict[str, torch.Tensor] = {}
        for name in restored.files(pair, "parameters"):
            with restored.local(name) as part:
                pieces |= load_file(part)
        found |= _untrained(signature, pieces) | _trained(signature, pieces)
        found |= {alias: found[name] for alias, name in signature.aliases.items() if name in found}
    return found


def _is_real(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers of one byte have no isfinite."""
    return tensor.float() if tensor.element_size() == 1 else tensor


def _trained(signature: Signature, pieces: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    cut: dict[int, list[tuple[int, torch.Tensor]]] = {}
    for name, piece in pieces.items():
        index, colon, start = name.partition(":")
        if colon and index.isdigit():
            cut.setdefault(int(index), []).append((int(start), piece))
    found = {}
    for i, info in enumerate(signature.parameters):
        slices = [piece for _, piece in sorted(cut.get(i, []), key=lambda item: item[0])]
        empty = torch.empty(0, dtype=getattr(torch, info.dtype), device="cpu")
        found[info.name] = torch.cat(slices or [empty]).view(info.shape)
    return found


def _untrained(signature: Signature, pieces: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {info.name: pieces[info.name] for info in signature.untrained if info.name not in signature.transient}
