"""How an update strategy is declared: once, in its own file. Everything else asks its knobs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_snake

from paceline_core.resource import Strict
from paceline_core.state_machine import Knobs


def fits(settings: Any, world_size: int) -> None:
    """The check of a strategy that runs with any number of workers."""
    del settings, world_size


@dataclass(frozen=True)
class Strategy:
    """An update strategy of the parameter servers.

    `knobs(settings, world_size)` says what it does, where `settings` is an instance of the class `settings`, or None.
    `problem(settings, world_size)` says why it cannot run with so many workers, and what to do; None when it can.
    """

    name: str  # as in `parameterServer.strategy`; its settings are in the field of that name, in camelCase
    summary: str  # what it does, after its name: "Synchronous applies the mean ..."
    knobs: Callable[[Any, int], Knobs]
    settings: type[Strict] | None = None
    problem: Callable[[Any, int], str | None] = fits

    @property
    def field(self) -> str:
        """The field of its settings, as in a manifest."""
        return self.name[0].lower() + self.name[1:]

    @property
    def member(self) -> str:
        """The field of its settings, in Python."""
        return to_snake(self.name)
