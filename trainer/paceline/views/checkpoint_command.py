"""`paceline checkpoint`: what checkpoints there are, whether they are as they were written, and their weights."""

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from paceline.checkpoints import checkpoint_folder as folder
from paceline.checkpoints import checkpoint_manifest as manifest
from paceline.checkpoints.checkpoint_manifest import Manifest
from paceline_core.errors import CheckpointDamaged, SpecError


def checkpoint_of(given: Path) -> Path:
    """The checkpoint that a path means: itself, or the newest one of a run that is as it was written.

    Raises SpecError.
    """
    root = root_of(given)
    if (given / manifest.FILE).exists():
        found = _read(given)
        if problems := manifest.problems(given, found):
            raise SpecError(problems)
        return given
    try:
        newest = folder.newest(root)
    except CheckpointDamaged as error:
        raise SpecError([f"{root}: no checkpoint is as it was written: {error}"]) from None
    if newest is None:
        raise SpecError([f"{given}: there is no checkpoint (spec.checkpoint says when to save one)"])
    path, _, wrong = newest
    for problem in wrong:
        print(f"passed over: {problem}", file=sys.stderr)
    return path


def root_of(given: Path) -> Path:
    """The folder of checkpoints that a path means: a run's, or itself."""
    return given / folder.FOLDER if (given / folder.FOLDER).is_dir() else given


def show_all(given: Path) -> int:
    """One line for each checkpoint, the newest first. Raises SpecError."""
    found = folder.complete(root_of(given))
    if not found:
        raise SpecError([f"{given}: there is no checkpoint"])
    for path in found:
        it = _read(path)
        size = sum(f.nbytes for f in it.files) / 1e6
        print(f"{path}  step {it.step}  {datetime.fromtimestamp(it.saved):%Y-%m-%d %H:%M:%S}  {size:.1f} MB")
    return 0


def verify(given: Path) -> int:
    """Read every file of every checkpoint. Gives 1 when one is not as it was written. Raises SpecError."""
    paths = [given] if (given / manifest.FILE).exists() else folder.complete(root_of(given))
    if not paths:
        raise SpecError([f"{given}: there is no checkpoint"])
    bad = 0
    for path in paths:
        problems = _problems(path)
        for problem in problems:
            print(problem)
        bad += bool(problems)
        if not problems:
            print(f"{path}: as it was written")
    return 1 if bad else 0


def show(given: Path) -> int:
    """What is in a checkpoint. Raises SpecError."""
    path = checkpoint_of(given)
    print(path)
    print(_read(path).to_text(), end="")
    return 0


def export(given: Path, to: Path) -> int:
    """Write the weights of a checkpoint's first model as one safetensors file. Raises SpecError."""
    from paceline import weights
    from paceline.files import private_writing

    path = checkpoint_of(given)
    found = _read(path)
    tensors = weights.of_checkpoint(path, found.shards, len(found.versions))
    if to.exists() and to.is_dir():
        raise SpecError([f"{to}: is a folder; name the file"])
    try:
        weights.save(tensors, to)
        to.chmod(private_writing.USUAL & ~_umask())
    except OSError as error:
        raise SpecError([f"{to}: cannot be written: {error.strerror}"]) from None
    print(f"{to}: {len(tensors)} tensors of step {found.step}")
    return 0


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def _read(path: Path) -> Manifest:
    try:
        found = manifest.read(path)
    except CheckpointDamaged as error:
        raise SpecError([str(error)]) from None
    if found is None:
        raise SpecError([f"{path}: is not a checkpoint (there is no {manifest.FILE} in it)"])
    return found


def _problems(path: Path) -> Sequence[str]:
    try:
        found = manifest.read(path)
    except CheckpointDamaged as error:
        return [str(error)]
    return manifest.problems(path, found) if found else [f"{path}: has no manifest"]
