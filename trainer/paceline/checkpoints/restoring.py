"""What a training goes on from: a checkpoint whose files are as they were written, and whose model is this one.

Its tensors are read by paceline/checkpoints/saved_tensors.py; this file needs no torch.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from paceline.checkpoints import checkpoint_manifest, finding
from paceline.checkpoints.checkpoint_manifest import Manifest
from paceline.checkpoints.checkpoint_place import CheckpointPlace
from paceline.model_signature import Signature
from paceline_core.errors import CheckpointDamaged, ModelMismatch, UsageError
from paceline_core.launch import NEWEST, Launch

log = logging.getLogger("paceline")


class Restored:
    """A checkpoint. Raises CheckpointDamaged."""

    def __init__(self, place: CheckpointPlace, found: Manifest | None = None, passed_over: Sequence[str] = ()) -> None:
        found = found or place.manifest()
        if found is None:
            raise CheckpointDamaged(f"{place}: there is no {checkpoint_manifest.FILE} in it")
        self.place, self.manifest, self.passed_over = place, found, passed_over
        self._stored = {file.name: file for file in found.files}

    @classmethod
    def of(cls, launch: Launch) -> "Restored | None":
        """What the training goes on from, verified, if it does. Raises CheckpointDamaged, UsageError."""
        if launch.resume is None:
            return None
        if launch.resume != NEWEST:
            found = cls(finding.place_of(launch.resume))
            found.verify(launch.world_size)
            return found
        place = finding.root(launch)
        newest = None if place is None else finding.newest(place)
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
        if problems := self.place.problems(self.manifest):
            raise CheckpointDamaged("; ".join(problems))

    def demand(self, workers: int) -> None:
        """Raises UsageError for another number of workers."""
        if self.manifest.workers != workers:
            why = checkpoint_manifest.another_number(self.manifest.workers, workers)
            raise UsageError(f"the checkpoint {self.place} {why}")

    def worker_state(self, worker: int) -> bytes:
        """What a worker sent; b"" of one that has not. Raises CheckpointDamaged."""
        name = f"worker-{worker}.state"
        if name not in self._stored:
            return b""
        with self.local(name) as path:
            try:
                return path.read_bytes()
            except OSError as error:
                raise CheckpointDamaged(f"{self.inside(name)}: cannot be read: {error.strerror}") from error

    def check_model(self, pair: int, signature: Signature) -> None:
        """Raises ModelMismatch when a pair is another model or optimizer than was saved, CheckpointDamaged."""
        if difference := self.signature(pair).difference(signature):
            raise ModelMismatch(f"the checkpoint {self.place} is of another model: {difference}")

    def version(self, pair: int) -> int:
        """Updates that were made of a pair of a model and an optimizer; 0 of one that there was not."""
        versions = self.manifest.versions
        return versions[pair] if pair < len(versions) else 0

    def files(self, pair: int, kind: str) -> list[str]:
        """The files of a pair, one of each process that wrote a part; `kind` is `parameters` or `optimizer`."""
        return [f"ps-{ordinal}.{pair}.{kind}.safetensors" for ordinal in range(self.manifest.shards)]

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """A file to read from. Raises CheckpointDamaged."""
        if name not in self._stored:
            raise CheckpointDamaged(f"{self.inside(name)}: the manifest does not name it")
        with self.place.local(self._stored[name]) as path:
            yield path

    def inside(self, name: str) -> str:
        """Where a file is, in words."""
        return str(self.place.inside(name))

    def signature(self, pair: int) -> Signature:
        """The model and optimizer of a pair. Raises ModelMismatch when there are fewer, CheckpointDamaged."""
        if pair >= len(self.manifest.versions):
            raise ModelMismatch(
                f"the checkpoint {self.place} has {len(self.manifest.versions)} optimizers; the script distributes more"
            )
        name = f"pair-{pair}.json"
        with self.local(name) as path:
            try:
                return Signature.from_json(json.loads(path.read_text()))
            except (OSError, ValueError) as error:
                raise CheckpointDamaged(f"{self.inside(name)}: {error}") from error
