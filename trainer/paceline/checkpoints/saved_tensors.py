"""The tensors of a checkpoint, whole, however many processes wrote parts of them. Every function raises
CheckpointDamaged for what cannot be read or is not all there."""

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import safe_open

from paceline import optimizer_state
from paceline.checkpoints.restoring import Restored
from paceline.model_signature import Signature
from paceline.tensor_bytes import memory
from paceline_core.errors import CheckpointDamaged


def parameters(of: Restored, pair: int, signature: Signature, wanted: Iterable[int]) -> dict[int, torch.Tensor]:
    """Parameters by their numbers in the signature, each of shape [numel] and on the CPU."""
    pieces: dict[int, list[tuple[int, torch.Tensor]]] = {number: [] for number in wanted}
    for name in of.files(pair, "parameters"):
        with _opened(of, name) as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                index, colon, start = key.partition(":")
                if colon and index.isdigit() and int(index) in pieces:
                    pieces[int(index)].append((int(start), file.get_tensor(key)))
    return {number: _joined(parts, signature, number) for number, parts in pieces.items()}


def untrained(of: Restored, pair: int, signature: Signature) -> dict[int, bytes]:
    """The bytes of frozen parameters and buffers, by their numbers among `signature.untrained`."""
    with _opened(of, of.files(pair, "parameters")[0]) as file:
        names = set(file.keys())
        return {
            number: bytes(memory(file.get_tensor(info.name).contiguous()))
            for number, info in enumerate(signature.untrained)
            if info.name in names
        }


def optimizer_states(of: Restored, pair: int, like: Mapping[int, torch.Tensor]) -> dict[int, dict[str, Any]]:
    """The optimizer's state of each of these parameters that has one, with the shapes and on the devices of `like`."""
    slices = _optimizer_slices(of, pair, like)
    return {number: optimizer_state.joined(like[number], parts) for number, parts in slices.items()}


def _optimizer_slices(
    of: Restored, pair: int, wanted: Container[int]
) -> dict[int, list[tuple[int, optimizer_state.State]]]:
    found: dict[int, list[tuple[int, optimizer_state.State]]] = {}
    for name in of.files(pair, "optimizer"):
        with of.local(name) as path:
            try:
                states = optimizer_state.unpack(path.read_bytes())
            except Exception as error:
                raise CheckpointDamaged(f"{of.inside(name)}: {error}") from error
        for (parameter, start), state in states.items():
            if parameter in wanted:
                found.setdefault(parameter, []).append((start, state))
    return found


def _joined(parts: list[tuple[int, torch.Tensor]], signature: Signature, number: int) -> torch.Tensor:
    info = signature.parameters[number]
    ordered = [part.reshape(-1) for _, part in sorted(parts, key=lambda part: part[0])]
    whole = torch.cat(ordered) if ordered else torch.empty(0, dtype=getattr(torch, info.dtype), device="cpu")
    if whole.numel() != info.numel:
        raise CheckpointDamaged(f"parts of {info.name} are missing")
    return whole


@contextmanager
def _opened(of: Restored, name: str) -> Iterator[Any]:
    with of.local(name) as path:
        try:
            file = safe_open(path, framework="pt")
        except Exception as error:  # safetensors has an exception of its own for each kind of damage
            raise CheckpointDamaged(f"{of.inside(name)}: {error}") from error
        with file:
            yield file
