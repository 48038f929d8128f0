"""Slows a worker down on purpose, in its data, its computing or its sending, so that a straggler can be studied."""

import time

from paceline.worker.observability.phase_clock import Step
from paceline_core.launch import Slowdown, Slowed

OWN = ("data", "forward", "backward")  # what a factor multiplies


class InjectedDelay:
    """What `--slow` asked for; without it, nothing."""

    def __init__(self, slowdown: str | None) -> None:
        self._asked = Slowdown.parse(slowdown) if slowdown else None
        self._own, self._slept = 0.0, 0.0
        self.used = False

    @property
    def part(self) -> Slowed | None:
        """What is slowed down."""
        return self._asked.part if self._asked else None

    def seconds(self) -> float:
        """By how much each step is to be longer."""
        return self._asked.seconds + (self._asked.factor - 1) * self._own if self._asked else 0.0

    def pause(self, part: Slowed) -> None:
        """Wait, if it is this part that is slow."""
        if self.part is part:
            seconds, self.used = self.seconds(), True
            time.sleep(seconds)
            self._slept += seconds

    def step_ended(self, step: Step) -> None:
        """Remember how long this worker computed by itself, for a factor."""
        if self._asked:
            phases = step.phases()
            self._own = max(0.0, sum(phases.get(p, 0.0) for p in OWN) - self._slept)
            self._slept = 0.0
