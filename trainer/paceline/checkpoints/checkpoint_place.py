"""What a place of checkpoints can do, a folder as well as its like in an object store; nobody else asks which it is."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from paceline.checkpoints.checkpoint_manifest import Manifest, StoredFile


class CheckpointPlace(Protocol):
    """Where one checkpoint is, or all those of a training; as a text what a user writes for it.

    What cannot be done raises OSError in a folder, and StoreUnreachable or StoreRefused in an object store.
    """

    @property
    def name(self) -> str:
        """The last part of where it is."""

    @property
    def absolute(self) -> str:
        """What another process finds it by."""

    def inside(self, name: str) -> "CheckpointPlace":
        """A place in this one."""

    def demand_usable(self) -> None:
        """Read and write there, where that is known only by trying."""

    def complete(self) -> Sequence["CheckpointPlace"]:
        """The checkpoints in it, the newest first; not verified."""

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep`, and what older attempts left unfinished."""

    def begin(self) -> None:
        """What was there, of an earlier attempt, is no checkpoint any more."""

    def write(self, name: str, fill: Callable[[Path], object]) -> StoredFile:
        """Write one file, which `fill` makes at the path that it is given, and make it durable."""

    def commit(self, made: Manifest) -> None:
        """Complete a checkpoint whose other files are there."""

    def discard(self) -> None:
        """Remove what is unfinished, as far as it can be."""

    def manifest(self) -> Manifest | None:
        """The manifest; None where there is none. Raises CheckpointDamaged for one that was changed."""

    def problems(self, manifest: Manifest) -> list[str]:
        """What is wrong with the files, each with its name; none when all are as they were written."""

    def local(self, file: StoredFile) -> AbstractContextManager[Path]:
        """A file to read from. Raises CheckpointDamaged."""
