"""Asynchronous: each gradient is applied when it arrives, unless it is too stale."""

from enum import StrEnum

from pydantic import Field

from paceline_core.resource import GREATEST_COUNT, Strict
from paceline_core.state_machine import Knobs
from paceline_core.strategies.declaration import Strategy


class OnStale(StrEnum):
    """What a worker does after its gradient was rejected as too stale."""

    RECOMPUTE = "Recompute"
    NEXT_BATCH = "NextBatch"


class Asynchronous(Strict):
    """Settings of the strategy Asynchronous."""

    max_staleness: int = Field(
        default=8,
        ge=0,
        le=GREATEST_COUNT,
        description="Greatest delay, in updates, between the parameters a gradient was computed from and those it is "
        "applied to; a gradient with a greater delay is rejected. Default: 8.",
    )
    on_stale: OnStale = Field(
        default=OnStale.RECOMPUTE,
        description="What a worker does after a rejection: Recompute the gradient of the same batch (needs the data "
        "to come through paceline.shard) or go on with the NextBatch. Default: Recompute.",
    )


def knobs(settings: Asynchronous, world_size: int) -> Knobs:
    """A quorum of one, and the greatest delay that the settings allow."""
    del world_size
    return Knobs(
        quorum=1,
        greatest_delay=settings.max_staleness,
        replaces_alone=True,
        repeats=settings.on_stale is OnStale.RECOMPUTE,
    )


ASYNCHRONOUS = Strategy("Asynchronous", "applies each as it arrives", knobs, Asynchronous)
