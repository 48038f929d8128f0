"""What a training goes on from: a checkpoint whose files are as they were written, and whose model is this one.

Its tensors are read by paceline/checkpoints/saved_tensors.py; this file needs no torch.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from paceline.checkpoints import checkpoint_folder
from paceline.checkpoints import checkpoint_manifest as manifest
from paceline.checkpoints.checkpoint_manifest import Manifest
from paceline.model_signature import Signature
from paceline_core.errors import CheckpointDamaged, ModelMismatch, UsageError
from paceline_core.launch import NEWEST, Launch

log = logging.getLogger("paceline")


class Restored:
    """A checkpoint. Raises CheckpointDamaged."""

    def __init__(self, path: Path, found: Manifest | None = None, passed_over: Sequence[str] = ()) -> None:
        found = found or manifest.read(path)
        if found is None:
            raise CheckpointDamaged(f"{path}: there is no {manifest.FILE} in it")
        self.path, self.manifest, self.passed_over = path, found, passed_over

    @classmethod
    def of(cls, launch: Launch) -> "Restored | None":
        """What the training goes on from, verified, if it does. Raises CheckpointDamaged, UsageError."""
        if launch.resume is None:
            return None
        if launch.resume != NEWEST:
            found = cls(Path(launch.resume))
            found.verify(launch.world_size)
            return found
        place = checkpoint_folder.root(launch)
        newest = None if place is None else checkpoint_folder.newest(place)
        if newest is None:
            return None
        found = cls(*newest)
        for problem in found.passed_over:
            log.warning("a checkpoint is passed over: %s", problem)
        found.demand(launch.world_size)
        return found

    def verify(self, workers: int) -> None:
        """Read every file. Raises CheckpointDamaged, and UsageError for another number of workers."""
        self.demand(workers)
        if problems := manifest.problems(self.path, self.manifest):
            raise CheckpointDamaged("; ".join(problems))

    def demand(self, workers: int) -> None:
        """Raises UsageError for another number of workers."""
        if self.manifest.workers != workers:
            raise UsageError(f"the checkpoint {self.path} {manifest.another_number(self.manifest.workers, workers)}")

    def worker_state(self, worker: int) -> bytes:
        """What a worker sent; b"" of one that has not. Raises CheckpointDamaged."""
        name = f"worker-{worker}.state"
        if name not in {f.name for f in self.manifest.files}:
            return b""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise CheckpointDamaged(f"{self.path / name}: cannot be read: {error.strerror}") from error

    def check_model(self, pair: int, signature: Signature) -> None:
        """Raises ModelMismatch when a pair is another model or optimizer than was saved, CheckpointDamaged."""
        if difference := self._signature(pair).difference(signature):
            raise ModelMismatch(f"the checkpoint {self.path} is of another model: {difference}")

    def version(self, pair: int) -> int:
        """Updates that were made of a pair of a model and an optimizer; 0 of one that there was not."""
        versions = self.manifest.versions
        return versions[pair] if pair < len(versions) else 0

    def files(self, pair: int, kind: str) -> list[Path]:
        """The files of a pair, one of each process that wrote a part; `kind` is `parameters` or `optimizer`."""
        return [self.path / f"ps-{ordinal}.{pair}.{kind}.safetensors" for ordinal in range(self.manifest.shards)]

    def _signature(self, pair: int) -> Signature:
        if pair >= len(self.manifest.versions):
            raise ModelMismatch(
                f"the checkpoint {self.path} has {len(self.manifest.versions)} optimizers; the script distributes more"
            )
        try:
            return Signature.from_json(json.loads((self.path / f"pair-{pair}.json").read_text()))
        except (OSError, ValueError) as error:
            raise CheckpointDamaged(f"{self.path}/pair-{pair}.json: {error}") from error
