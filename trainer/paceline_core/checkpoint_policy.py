"""Checkpoints of a training: when one is saved and where, how many are kept, and who goes on from them."""

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from paceline_core.resource import GREATEST_COUNT, LONGEST_SECONDS, Strict

PLACE = r"^(/|(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(/[^?#@]*)?$)"
SAYS_NOT_WHEN = "says not when: set everySteps or everySeconds, or both"


class Resume(StrEnum):
    """Whether a new training goes on from what one of its name has saved before."""

    NEVER = "Never"
    AUTO = "Auto"


def is_in_object_store(place: str) -> bool:
    """Whether a place is the URL of an object store, and no folder."""
    return "://" in place


class Checkpoint(Strict):
    """When to save what a training can go on from, and where."""

    every_steps: int | None = Field(
        default=None, ge=1, le=GREATEST_COUNT, description="Updates between two checkpoints. Default: none."
    )
    every_seconds: float | None = Field(
        default=None, gt=0, le=LONGEST_SECONDS, description="Seconds between two checkpoints. Default: none."
    )
    keep: int = Field(default=2, ge=1, le=GREATEST_COUNT, description="Checkpoints to keep. Default: 2.")
    to: str | None = Field(
        default=None,
        pattern=PLACE,
        description="Where the training has a folder of its name: a folder on a volume that every server mounts (in a "
        "ring the coordinator and every worker), or the URL of one in an object store, s3://BUCKET/PREFIX, "
        "gs://BUCKET/PREFIX or az://CONTAINER/PREFIX, which they reach with the credentials of their environment or "
        "service account. Required in a cluster. Default, with `paceline run`: `checkpoints` in the run folder.",
    )
    resume: Resume = Field(
        default=Resume.NEVER,
        description="What a new training does when there are checkpoints in its folder already: Auto goes on from the "
        "newest, Never refuses to begin. A restart always goes on from what the training itself has saved. "
        "Default: Never.",
    )

    @model_validator(mode="after")
    def _says_when(self) -> Self:
        if self.every_steps is None and self.every_seconds is None:
            raise ValueError(SAYS_NOT_WHEN)
        return self
