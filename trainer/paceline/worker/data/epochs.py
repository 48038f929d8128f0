"""What counts as an epoch of a data set: an iteration with which optimizer steps were made.

An iteration without a step, to look at a batch or to evaluate, has the order of the next epoch and does not count, even
on one worker alone and in the middle of another iteration.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(eq=False)
class Pass:
    """One iteration over a data set."""

    epoch: int
    outer: "Pass | None" = None  # the iteration during which this one began
    steps: int = 0
    open: bool = True
    given: int = 0  # batches handed out
    number: int = 0  # of iterations that began with this epoch
    goes_on: bool = False  # it, or a part of it, was made in the run that this one goes on from


@dataclass(frozen=True)
class DataPosition:
    """Where a data set is."""

    epoch: int
    given: int | None  # batches handed out in it; None: its iteration has ended
    looks: Mapping[int, int] = field(default_factory=dict)  # iterations without a step before the one of each epoch


class Epochs:
    """The epochs of one data set; `steps` counts the optimizer steps of this process."""

    def __init__(self, steps: Callable[[], int]) -> None:
        self._steps, self._seen = steps, steps()
        self._current: Pass | None = None  # the one that handed out the newest batch: steps are made with it
        self._trains = False  # whether steps were made while one was open
        self._begun = Counter[int]()  # iterations, by epoch
        self._looks: dict[int, int] = {}
        self._goal: DataPosition | None = None  # where to go on
        self._reached: Callable[[], None] = lambda: None
        self._went_on: Pass | None = None  # the one that was where it was to go on
        self._ended: Callable[[], None] = lambda: None
        self._is_asked_for = False  # whether the script has called iter() to go on
        self._abandoned = False  # whether no iteration comes to the goal any more

    def begin(self) -> Pass:
        """A new iteration."""
        self._count()
        before = self._current
        epoch = before.epoch + (before.steps > 0) if before else 0
        self._current = Pass(epoch, before if before and before.open else None, number=self._begun[epoch])
        if not any(around.open and around.steps for around in _around(self._current)):
            self._begun[epoch] += 1
        return self._current

    def resumed(self, it: Pass) -> None:
        """The script asks an iteration for more: if another began meanwhile, that one only interrupted it."""
        self._count()
        self._return_to(it)

    def end(self, it: Pass) -> None:
        """An iteration is exhausted or abandoned; one without a step gives way to the one that it interrupted."""
        self._count()
        if it in _around(self._current):
            self._return_to(it)
        it.open = False
        if it is self._went_on:
            self._ended()
        outer = next((o for o in _around(it) if o.open), None)
        it.outer = None
        if self._current is it and not it.steps and outer is not None:
            self._current = outer

    def training(self) -> bool:
        """Whether an iteration is open with which steps were made."""
        self._count()
        return any(it.open and it.steps for it in (self._current, *_around(self._current)) if it)

    def place(self) -> DataPosition | None:
        """Where it is between two steps; None of data without a step."""
        self._count()
        it = self._current
        if it is None or not self._trains:
            return None
        if it.steps:
            return DataPosition(it.epoch, it.given if it.open else None, dict(self._looks))
        return DataPosition(it.epoch, 0, self._looks | {it.epoch: self._begun[it.epoch]})  # the epoch to come

    def go_on(self, place: DataPosition, reached: Callable[[], None], ended: Callable[[], None]) -> None:
        """Go on at a place; `reached` is called there, and `ended` at the end of the iteration that came there."""
        self._goal, self._reached, self._looks = place, reached, dict(place.looks)
        self._ended = ended

    def abandon(self) -> None:
        """The iteration that the script has called iter() for, and that was to come to the place, is over without it.

        As of the second of two in a `zip`, which is not asked any more when the first is exhausted.
        """
        self._abandoned = self._is_asked_for

    def asked_for_iteration(self) -> None:
        """The script calls iter()."""
        goal = self._goal
        self._is_asked_for = goal is not None
        if goal is not None and self._abandoned:
            self._goal = None
            self.set(goal.epoch + 1)
            self._reached()

    def pass_finished(self) -> None:
        """The next iteration is the one to go on in."""
        if self._goal is not None:
            self.set(self._goal.epoch)
            self._begun[self._goal.epoch] = self._goal.looks.get(self._goal.epoch, 0)

    def before(self, it: Pass) -> int | None:
        """How many batches of an iteration to leave out, because they were handed out before; None: all.

        One that made no step in the run before, as an evaluation, is made again whole.
        """
        goal = self._goal
        if goal is None or it.epoch > goal.epoch or it.number < goal.looks.get(it.epoch, 0):
            return 0
        self._trains = it.goes_on = True
        it.steps = 1
        return None if it.epoch < goal.epoch else goal.given

    def reach(self, it: Pass) -> None:
        """An iteration is where it was."""
        goal = self._goal
        if goal is not None and it.goes_on and it.epoch == goal.epoch:
            it.given, self._goal, self._went_on = goal.given or 0, None, it
            self._reached()

    def set(self, epoch: int) -> None:
        """The next iteration is of this epoch."""
        self._count()
        self._current = Pass(epoch, open=False)

    def _return_to(self, it: Pass) -> None:
        """Steps made since one that interrupts it and is still open were made with the batch of this iteration."""
        around = _around(self._current)
        if it in around and self._current is not None:
            for inner in [self._current, *around[: around.index(it)]]:
                if inner.open and inner.steps:
                    it.steps, inner.steps = it.steps + inner.steps, 0
                    self._looks.pop(inner.epoch, None)
                    self._note(it)
        self._current = it

    def _count(self) -> None:
        now = self._steps()
        if self._current is not None:
            self._current.steps += now - self._seen
            if now > self._seen:
                self._note(self._current)
            self._trains = self._trains or (self._current.open and now > self._seen)
        self._seen = now

    def _note(self, trained: Pass) -> None:
        """This iteration is the one of its epoch with which steps are made."""
        self._looks.pop(trained.epoch, None)
        if trained.number:
            self._looks[trained.epoch] = trained.number


def _around(it: Pass | None) -> list[Pass]:
    """The iterations during which this one began, from the innermost on."""
    found = list[Pass]()
    while it is not None and it.outer is not None:
        it = it.outer
        found.append(it)
    return found
