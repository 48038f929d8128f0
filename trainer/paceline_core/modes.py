"""The ways to update, by the name that people see: each strategy of the parameter servers, and the ring.

What is shown of a training or declared beforehand (metrics, dashboards, documentation) follows from its mode alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from paceline_core.spec import ParameterServer, Topology, is_ring
from paceline_core.state_machine import Knobs
from paceline_core.strategies import STRATEGIES

WORKERS = 3  # of the training that stands for all of a mode: a quorum of all but one is neither one nor all


@dataclass(frozen=True)
class Mode:
    """A way to update; its knobs are those of the default settings."""

    name: str
    knobs: Knobs
    ring: bool = False  # workers average gradients among themselves


MODES: Mapping[str, Mode] = {name: Mode(name, ParameterServer(strategy=name).knobs(WORKERS)) for name in STRATEGIES} | {
    str(topology): Mode(str(topology), Knobs(), ring=True) for topology in Topology if is_ring(topology)
}


def mode(name: str) -> Mode:
    """The mode of this name; one that is not known here, as of another version, is taken for a plain one."""
    return MODES.get(name, Mode(name, Knobs()))


def names(where: Callable[[Mode], bool] = lambda _: True) -> tuple[str, ...]:
    """The names of the modes for which this holds."""
    return tuple(name for name, it in MODES.items() if where(it))


def either(where: Callable[[Mode], bool] = lambda _: True) -> str:
    """The names of the modes for which this holds, in a sentence: `A, B or C`."""
    *first, last = names(where)
    return f"{', '.join(first)} or {last}" if first else last


WAITING = ", ".join(names(lambda it: it.knobs.waits_for_all))
NOT_WAITING = either(lambda it: not it.knobs.waits_for_all)
WITHOUT_SERVERS = ", ".join(names(lambda it: it.ring))
