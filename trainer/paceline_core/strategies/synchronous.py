"""Synchronous: every update is the mean of one gradient from each worker, all computed from the same parameters."""

from paceline_core.state_machine import Knobs
from paceline_core.strategies.declaration import Strategy


def knobs(settings: None, world_size: int) -> Knobs:
    """A quorum of all members, which wait for one in a lost one's place."""
    del settings, world_size
    return Knobs(replaces_alone=True)


SYNCHRONOUS = Strategy("Synchronous", "applies the mean of all workers' gradients", knobs)
