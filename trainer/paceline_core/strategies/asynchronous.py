"""Asynchronous: each gradient is applied when it arrives, unless it is too stale."""

from paceline_core.spec import ParameterServer
from paceline_core.strategy import Knobs


def asynchronous(server: ParameterServer, world_size: int) -> Knobs:
    """A quorum of one, and the greatest delay that the settings allow."""
    del world_size
    return Knobs(quorum=1, greatest_delay=server.staleness.max_staleness)
