"""BackupWorkers: every update is the mean of the gradients that come first; those of the slowest are left out.

J. Chen, X. Pan, R. Monga, S. Bengio, R. Jozefowicz, "Revisiting Distributed Synchronous SGD" (arXiv 1604.00981): of
N + b workers the first N gradients of each step are applied, and those of the b stragglers are dropped.
"""

from pydantic import Field

from paceline_core.resource import GREATEST_COUNT, Strict
from paceline_core.state_machine import Knobs
from paceline_core.strategies.declaration import Strategy


class BackupWorkers(Strict):
    """Settings of the strategy BackupWorkers."""

    backups: int = Field(
        default=1,
        ge=1,
        le=GREATEST_COUNT,
        description="How many workers each update does without: it is made of the gradients of all workers but the "
        "slowest so many, whose gradients are rejected as stale when they come. Default: 1.",
    )


def knobs(settings: BackupWorkers, world_size: int) -> Knobs:
    """A quorum of all workers but the backups; a gradient that missed its update has a delay, and none is allowed."""
    return Knobs(quorum=world_size - settings.backups, greatest_delay=0, replaces_alone=True)


def problem(settings: BackupWorkers, world_size: int) -> str | None:
    """An update needs one gradient at least."""
    if settings.backups < world_size:
        return None
    return (
        f"`backupWorkers.backups` is {settings.backups}, but there are {world_size} workers: an update needs the "
        "gradient of one at least"
    )


BACKUP_WORKERS = Strategy(
    "BackupWorkers",
    "applies the mean of those that come first, and does without the slowest",
    knobs,
    BackupWorkers,
    problem,
)
