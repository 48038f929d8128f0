"""When a checkpoint is due, by updates and by time; pure, the time is an argument."""

from paceline_core.checkpoint_policy import Checkpoint

QUESTIONS = 20  # between two checkpoints that are due by time
LONGEST_SECONDS = 1.0  # between two questions: a process that is told to end does not wait longer for a checkpoint


class SaveSchedule:
    """Times are in seconds of one clock; steps count the updates of all pairs of a model and an optimizer."""

    def __init__(self, asked: Checkpoint, step: int, now: float) -> None:
        self._steps, self._seconds = asked.every_steps, asked.every_seconds
        self._step, self._time = step, now  # when a checkpoint was due
        self._question = step, now  # when it was last asked

    def due(self, step: int, now: float, asked: bool = False) -> bool:
        """Whether to save after this step, also because it is asked for; said once."""
        by_steps = self._steps is not None and step >= self._step + self._steps
        by_time = self._seconds is not None and now >= self._time + self._seconds
        if by_steps or by_time or asked:
            self._step, self._time = step, now
        return by_steps or by_time or asked

    def next_question(self, step: int, now: float) -> int:
        """After which step to ask again, where it is asked after a few steps only, as now after `step`.

        That is after some time, if steps last as long as since the question before; the number of steps at most
        doubles from one question to the next, because the first steps tell little of the later ones.
        """
        before, then = self._question
        self._question = step, now
        each, left = max(now - then, 1e-9) / max(step - before, 1), LONGEST_SECONDS
        found = []
        if self._steps is not None:
            found.append(self._step + self._steps)
        if self._seconds is not None:
            left = min(self._time + self._seconds - now, self._seconds / QUESTIONS, left)
        found.append(step + min(int(left / each), 2 * (step - before)))
        return max(step + 1, min(found))
