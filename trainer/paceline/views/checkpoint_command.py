"""`paceline checkpoint`: what checkpoints there are, whether they are as they were written, and their weights."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from paceline.checkpoints import finding
from paceline.checkpoints.checkpoint_folder import FOLDER, Folder
from paceline.checkpoints.checkpoint_manifest import FILE, Manifest
from paceline.checkpoints.checkpoint_place import CheckpointPlace
from paceline_core.errors import CheckpointDamaged, SpecError, StoreRefused, StoreUnreachable


@contextmanager
def told_as_problems() -> Iterator[None]:
    """What an object store does not give is a problem of what the user named. Raises SpecError."""
    try:
        yield
    except (StoreRefused, StoreUnreachable) as error:
        raise SpecError([str(error)]) from None


def checkpoint_of(given: CheckpointPlace) -> CheckpointPlace:
    """The checkpoint that a place means: itself, or the newest one of a run that is as it was written.

    Raises SpecError, StoreRefused, StoreUnreachable, as all functions here do.
    """
    found = _manifest(given)
    if found is not None:
        if problems := given.problems(found):
            raise SpecError(problems)
        return given
    root = root_of(given)
    try:
        newest = finding.newest(root)
    except CheckpointDamaged as error:
        raise SpecError([f"{root}: no checkpoint is as it was written: {error}"]) from None
    if newest is None:
        raise SpecError([f"{given}: there is no checkpoint (spec.checkpoint says when to save one)"])
    place, _, wrong = newest
    for problem in wrong:
        print(f"passed over: {problem}", file=sys.stderr)
    return place


def root_of(given: CheckpointPlace) -> CheckpointPlace:
    """The folder of checkpoints that a place means: a run's, or itself."""
    run = isinstance(given, Folder) and (given.path / FOLDER).is_dir()
    return given.inside(FOLDER) if run else given


def show_all(given: CheckpointPlace) -> int:
    """One line for each checkpoint, the newest first. Raises SpecError."""
    found = root_of(given).complete()
    if not found:
        raise SpecError([f"{given}: there is no checkpoint"])
    for path in found:
        it = _read(path)
        size = sum(f.nbytes for f in it.files) / 1e6
        print(f"{path}  step {it.step}  {datetime.fromtimestamp(it.saved):%Y-%m-%d %H:%M:%S}  {size:.1f} MB")
    return 0


def verify(given: CheckpointPlace) -> int:
    """Read every file of every checkpoint. Gives 1 when one is not as it was written. Raises SpecError."""
    paths = [given] if _is_checkpoint(given) else root_of(given).complete()
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


def show(given: CheckpointPlace) -> int:
    """What is in a checkpoint. Raises SpecError."""
    path = checkpoint_of(given)
    print(path)
    print(_read(path).to_text(), end="")
    return 0


def export(given: CheckpointPlace, to: Path) -> int:
    """Write the weights of a checkpoint's first model as one safetensors file. Raises SpecError."""
    from paceline import weights
    from paceline.checkpoints.restoring import Restored
    from paceline.files import private_writing

    path = checkpoint_of(given)
    found = _read(path)
    try:
        tensors = weights.of_checkpoint(Restored(path, found))
    except CheckpointDamaged as error:  # it was changed since
        raise SpecError([str(error)]) from None
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


def _read(place: CheckpointPlace) -> Manifest:
    found = _manifest(place)
    if found is None:
        raise SpecError([f"{place}: is not a checkpoint (there is no {FILE} in it)"])
    return found


def _manifest(place: CheckpointPlace) -> Manifest | None:
    try:
        return place.manifest()
    except CheckpointDamaged as error:
        raise SpecError([str(error)]) from None


def _is_checkpoint(place: CheckpointPlace) -> bool:
    """Whether there is a manifest, also a damaged one."""
    try:
        return place.manifest() is not None
    except CheckpointDamaged:
        return True


def _problems(place: CheckpointPlace) -> Sequence[str]:
    try:
        found = place.manifest()
    except CheckpointDamaged as error:
        return [str(error)]
    return place.problems(found) if found else [f"{place}: has no manifest"]
