"""A folder of checkpoints: files are written beside their places, made durable, and renamed; the manifest comes last.

A crash at any moment leaves every complete checkpoint as it was, and perhaps a folder without a manifest, which is
none. Every process of a training sees the same folder.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from paceline.checkpoints import checkpoint_manifest as manifest
from paceline.checkpoints.checkpoint_manifest import Manifest, StoredFile
from paceline.files import private_writing
from paceline_core.errors import CheckpointDamaged
from paceline_core.launch import Launch

FOLDER = "checkpoints"  # in a run folder, where no other is named
NAME = re.compile(r"step-(\d{9,})")


def root(launch: Launch) -> Path | None:
    """Where a training keeps its checkpoints; None when it keeps none."""
    asked = launch.spec.checkpoint
    if asked is None or (asked.to is None and launch.output is None):
        return None
    return Path(asked.to, launch.training) if asked.to else Path(str(launch.output), FOLDER)


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


def begin(folder: Path) -> None:
    """What was there, of an earlier attempt, is no checkpoint any more. Raises OSError."""
    (folder / manifest.FILE).unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Remove what is unfinished, as far as it can be."""
    if not (folder / manifest.FILE).exists():
        shutil.rmtree(folder, ignore_errors=True)


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


def newest(root: Path) -> tuple[Path, Manifest, list[str]] | None:
    """The newest checkpoint whose every file is as it was written, and what is wrong with newer ones."""
    wrong: list[str] = []
    for path in complete(root):
        try:
            found = manifest.read(path)
            if found is None:
                continue
            if not (problems := manifest.problems(path, found)):
                return path, found, wrong
            wrong += problems
        except CheckpointDamaged as error:
            wrong.append(str(error))
    if wrong:
        raise CheckpointDamaged("; ".join(wrong))
    return None


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
