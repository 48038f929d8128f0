"""Writes one process's part of each checkpoint: it was copied between two updates, and a thread writes it meanwhile.

A parameter server writes its shard, a worker of an all-reduce its share of what every worker has. Whoever writes the
manifest is told, also of a part that could not be written.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import save_file

from paceline import json_text, optimizer_state
from paceline.checkpoints import finding
from paceline.checkpoints.checkpoint_folder import reason
from paceline.checkpoints.checkpoint_manifest import StoredFile
from paceline.checkpoints.checkpoint_place import CheckpointPlace
from paceline_core import finiteness
from paceline_core.buckets import Slice

log = logging.getLogger("paceline")


@dataclass
class Part:
    """What one process holds of one pair of a model and an optimizer, as it was after an update."""

    step: int
    pair: int
    pairs: int  # how many there are
    version: int  # updates of this pair
    tensors: dict[str, torch.Tensor]  # `parameter:start`; with the first process what is not trained, by name
    optimizer: Sequence[tuple[Slice, optimizer_state.State]]
    signature: Mapping[str, Any] | None  # with the first process


class PartWriter:
    """One process's. `tell` is given, as JSON, what was written of a step when every pair's part is, or why not."""

    def __init__(self, ordinal: int, root: CheckpointPlace, tell: Callable[[dict[str, Any]], None]) -> None:
        self._ordinal, self._root, self._tell = ordinal, root, tell
        self._files: dict[int, list[StoredFile]] = {}  # by step, while pairs are missing
        self._versions: dict[int, dict[int, int]] = {}
        self._jobs: queue.SimpleQueue[tuple[int, Part | str] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="checkpoint-part", daemon=True)
        self._thread.start()

    def write(self, step: int, part: Part | str) -> None:
        """Write a part soon, or tell why it could not be copied."""
        self._jobs.put((step, part))

    def close(self) -> None:
        """Write what is on its way, and end."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            step, part = job
            try:
                told = self._failed(step, part) if isinstance(part, str) else self._written(part)
            except Exception as error:  # safetensors has an exception of its own, also for a full disk
                told = self._failed(step, reason(error))
            self._try_to_tell(told)

    def _try_to_tell(self, told: dict[str, Any] | None) -> None:
        try:
            if told is not None:
                self._tell(told)
        except Exception as error:  # saving is not on the path of training: it goes on, and says so
            log.warning("a part of a checkpoint could not be told, and the training goes on: %s", error)

    def _written(self, part: Part) -> dict[str, Any] | None:
        files = _write(part, finding.of_step(self._root, part.step), self._ordinal)
        self._files.setdefault(part.step, []).extend(files)
        versions = self._versions.setdefault(part.step, {})
        versions[part.pair] = part.version
        if len(versions) < part.pairs:
            return None
        files, versions = self._files.pop(part.step), self._versions.pop(part.step)
        in_order = [version for _, version in sorted(versions.items())]
        return {"step": part.step, "versions": in_order, "files": [asdict(file) for file in files]}

    def _failed(self, step: int, why: str) -> dict[str, Any]:
        self._files.pop(step, None)
        self._versions.pop(step, None)
        return {"step": step, "error": why}


def attempt(copied: Callable[[], Part]) -> Part | str:
    """A part, copied now, or why it cannot be: the training goes on without this checkpoint."""
    try:
        return copied()
    except Exception as error:  # no memory, for one
        return reason(error)


def copy(value: Any) -> Any:
    """A tensor of its own, contiguous and on the CPU; another value as it is."""
    return value.detach().to("cpu", copy=True).contiguous() if isinstance(value, torch.Tensor) else value


def _demand_finite(part: Part) -> None:
    """Weights that are not finite are not saved: they are nothing to go on from, and would push out what is."""
    for name, tensor in part.tensors.items():
        index, colon, _ = name.partition(":")
        trained = bool(colon) and index.isdigit() and tensor.numel() > 0 and tensor.is_floating_point()
        if trained and not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
            raise ValueError(finiteness.of_weights(f"parameter {index} of model {part.pair + 1}"))


def _write(part: Part, where: CheckpointPlace, ordinal: int) -> list[StoredFile]:
    _demand_finite(part)
    name = f"ps-{ordinal}.{part.pair}"
    state = optimizer_state.pack(part.optimizer)
    files = [
        where.write(f"{name}.parameters.safetensors", lambda path: save_file(part.tensors, path)),
        where.write(f"{name}.optimizer.safetensors", lambda path: path.write_bytes(state)),
    ]
    if part.signature is not None:
        signature = json_text.dumps(part.signature)
        files.append(where.write(f"pair-{part.pair}.json", lambda path: path.write_text(signature)))
    return files
