"""The strategies: one file each, a function from the settings to the four knobs."""

from collections.abc import Callable, Mapping

from paceline_core.spec import ParameterServer, Strategy
from paceline_core.strategies.asynchronous import asynchronous
from paceline_core.strategies.synchronous import synchronous
from paceline_core.strategy import Knobs

STRATEGIES: Mapping[Strategy, Callable[[ParameterServer, int], Knobs]] = {
    Strategy.SYNCHRONOUS: synchronous,
    Strategy.ASYNCHRONOUS: asynchronous,
}


def knobs(server: ParameterServer, world_size: int) -> Knobs:
    """The knobs of the strategy that these settings name."""
    return STRATEGIES[server.strategy](server, world_size)
