"""Finds checkpoints: the place that a text or a training names, and the newest one there that is as it was written."""

from pathlib import Path

from paceline.checkpoints.checkpoint_folder import FOLDER, Folder
from paceline.checkpoints.checkpoint_manifest import Manifest
from paceline.checkpoints.checkpoint_place import CheckpointPlace
from paceline_core.checkpoint_policy import is_in_object_store
from paceline_core.errors import CheckpointDamaged
from paceline_core.launch import Launch


def place_of(text: str) -> CheckpointPlace:
    """The place that a user names: a folder's path, or the URL of one in an object store."""
    if not is_in_object_store(text):
        return Folder(Path(text))
    from paceline.checkpoints.object_folder import ObjectFolder  # only who saves there loads the library

    return ObjectFolder(text.rstrip("/"))


def root(launch: Launch) -> CheckpointPlace | None:
    """Where a training keeps its checkpoints; None when it keeps none."""
    asked = launch.spec.checkpoint
    if asked is None or (asked.to is None and launch.output is None):
        return None
    return place_of(asked.to).inside(launch.training) if asked.to else Folder(Path(str(launch.output), FOLDER))


def of_step(root: CheckpointPlace, step: int) -> CheckpointPlace:
    """Where the checkpoint of a step is, or will be."""
    return root.inside(f"step-{step:09d}")


def newest(root: CheckpointPlace) -> tuple[CheckpointPlace, Manifest, list[str]] | None:
    """The newest checkpoint whose every file is as it was written, and what is wrong with newer ones."""
    wrong: list[str] = []
    for place in root.complete():
        try:
            found = place.manifest()
            if found is None:
                continue
            if not (problems := place.problems(found)):
                return place, found, wrong
            wrong += problems
        except CheckpointDamaged as error:
            wrong.append(str(error))
    if wrong:
        raise CheckpointDamaged("; ".join(wrong))
    return None
