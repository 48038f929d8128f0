"""The files that a run leaves, as models: checked, because a run folder may come from anybody."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from paceline.terminal import printable, printable_lines
from paceline.views.sources.status_answer import (
    MOST_NAMES,
    MOST_WORKERS,
    Answer,
    Clean,
    GoodputAnswer,
    Number,
    NumberOrNone,
)

LONGEST_MESSAGE = 2000  # characters
TRACEBACK_LINES = 200


def _goodput(value: Any) -> GoodputAnswer | None:
    try:
        return GoodputAnswer.model_validate(value)
    except ValidationError:
        return None  # nobody told: the run ended before its server did


class RunFailure(Answer):
    """Why a run failed."""

    replica: Clean
    message: Annotated[str, AfterValidator(lambda text: printable(text, LONGEST_MESSAGE))] = ""
    traceback: Annotated[str, AfterValidator(lambda text: printable_lines(text, TRACEBACK_LINES))] = ""
    victims: tuple[Clean, ...] = Field(default=(), max_length=MOST_WORKERS)


class RunResult(Answer):
    """result.json, as far as it is shown."""

    result: Clean = "Unknown"
    training: Clean | None = None
    strategy: Clean | None = None
    started: Clean | None = None
    duration_seconds: NumberOrNone = None
    goodput: Annotated[GoodputAnswer | None, BeforeValidator(_goodput)] = None
    error: RunFailure | None = None
    weights_sha256: Clean | None = None
    weights_not_finite: Clean | None = None  # a tensor
    replay_of: Clean | None = None
    resumed_from: Clean | None = None  # a checkpoint
    machine: dict[Clean, Number | Clean | None] = Field(default_factory=dict, max_length=MOST_NAMES)

    @property
    def failure(self) -> str:
        """Why it failed, in a line; empty when it did not."""
        return f"{self.error.replica}: {self.error.message}" if self.error else ""


class Endpoints(Answer):
    """endpoints.json: where the processes of a run can be asked while it goes on."""

    status: str | None = None
    metrics: dict[Clean, str] = Field(default_factory=dict, max_length=MOST_WORKERS)
