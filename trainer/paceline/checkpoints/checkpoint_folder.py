"""A folder of checkpoints: files are written beside their places, made durable, and renamed; the manifest comes last.

A crash at any moment leaves every complete checkpoint as it was, and perhaps a folder without a manifest, which is
none. Every process of a training sees the same folder.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paceline.checkpoints import checkpoint_manifest as manifest
from paceline.checkpoints.checkpoint_manifest import Manifest, StoredFile
from paceline.files import private_writing

FOLDER = "checkpoints"  # in a run folder, where no other is named
NAME = re.compile(r"step-(\d{9,})")


@dataclass(frozen=True)
class Folder:
    """A folder as a place of checkpoints (paceline/checkpoints/checkpoint_place.py). What fails raises OSError."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def absolute(self) -> str:
        """Its path from the root of the file system."""
        return str(self.path.resolve())

    def inside(self, name: str) -> "Folder":
        """A folder in this one."""
        return Folder(self.path / name)

    def demand_usable(self) -> None:
        """A save says by itself what cannot be written."""

    def complete(self) -> Sequence["Folder"]:
        """The checkpoints in it, the newest first; not verified."""
        return [Folder(path) for path in complete(self.path)]

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep`, and what older attempts left unfinished."""
        prune(self.path, keep)

    def begin(self) -> None:
        """What was there, of an earlier attempt, is no checkpoint any more."""
        (self.path / manifest.FILE).unlink(missing_ok=True)

    def write(self, name: str, fill: Callable[[Path], object]) -> StoredFile:
        """Write one file, which `fill` makes at the path that it is given, and make it durable."""
        return write(self.path, name, fill)

    def commit(self, made: Manifest) -> None:
        """Complete a checkpoint whose other files are there."""
        commit(self.path, made)

    def discard(self) -> None:
        """Remove what is unfinished, as far as it can be."""
        if not (self.path / manifest.FILE).exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def manifest(self) -> Manifest | None:
        """The manifest; None where there is none. Raises CheckpointDamaged for one that was changed."""
        return manifest.read(self.path)

    def problems(self, made: Manifest) -> list[str]:
        """What is wrong with the files, each with its name; none when all are as they were written."""
        return manifest.problems(self.path, made)

    @contextmanager
    def local(self, file: StoredFile) -> Iterator[Path]:
        """A file to read from."""
        yield self.path / file.name


def of_step(root: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or will be."""
    return root / f"step-{step:09d}"


def write(folder: Path, name: str, fill: Callable[[Path], object]) -> StoredFile:
    """Write one file, which `fill` makes at the path that it is given, and make it durable. Raises OSError."""
    folder.mkdir(mode=private_writing.FOLDER, parents=True, exist_ok=True)
    beside = folder / f".{name}.tmp"
    try:
        fill(beside)
        beside.chmod(private_writing.FILE)
        _make_durable(beside)
        stored = StoredFile(name, beside.stat().st_size, manifest.sha256(beside))
        os.replace(beside, folder / name)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return stored


def commit(folder: Path, made: Manifest) -> None:
    """Complete a checkpoint whose other files are there. Raises OSError."""
    _make_durable(folder)  # the names of its files
    write(folder, manifest.FILE, lambda path: path.write_text(made.to_text()))
    _make_durable(folder)
    _make_durable(folder.parent)


def complete(root: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first; not verified."""
    found = sorted((p for p in _in(root) if NAME.fullmatch(p.name)), key=_step, reverse=True)
    return [path for path in found if (path / manifest.FILE).exists()]


def reason(error: Exception) -> str:
    """Why something could not be written, with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def prune(root: Path, keep: int) -> None:
    """Remove all but the newest `keep`, and what older attempts left unfinished. Raises OSError."""
    whole = complete(root)
    for path in _in(root):
        if NAME.fullmatch(path.name) and path not in whole[:keep] and whole and _step(path) < _step(whole[0]):
            _remove(path)


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _remove(path: Path) -> None:
    """The manifest first: what is half removed is not a checkpoint."""
    (path / manifest.FILE).unlink(missing_ok=True)
    _make_durable(path)
    shutil.rmtree(path)


def _in(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
