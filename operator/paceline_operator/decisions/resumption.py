"""Going on from checkpoints: which attempts do, what is known of the newest one, and what is said about it. Pure."""

from collections.abc import Mapping
from typing import Any

from paceline_core.checkpoint_policy import Resume
from paceline_core.spec import TrainingSpec
from paceline_operator.decisions import training_answer
from paceline_operator.decisions.decision import Observed
from paceline_operator.decisions.persisted_state import text
from paceline_operator.decisions.training_answer import TrainingProgress

Object = dict[str, Any]
ANEW = "Everything begins anew"


def resumes(it: Observed) -> bool:
    """Whether the pods of this attempt go on from the newest checkpoint in the training's folder, if there is one.

    With `resume: Never` servers refuse to begin beside checkpoints of others. So once all workers have joined, what is
    in the folder is the training's own, and before that it may not be.
    """
    asked = it.spec.checkpoint
    return asked is not None and (asked.resume is Resume.AUTO or it.state.trained)


def figures(it: Observed, progress: TrainingProgress | None, before: Mapping[str, Any]) -> Object:
    """The part of the status about checkpoints; what is not known now stays as it was, also in a new attempt."""
    if it.spec.checkpoint is None:
        return {}
    told = progress.checkpoint if progress else training_answer.checkpoint_at_failure(it.current)
    if told is None:
        return {"checkpoint": before["checkpoint"]} if "checkpoint" in before else {}
    found = {
        "step": told.step,
        "time": None if told.time is None else text(told.time),
        "updatesSince": told.updates_since,
        "failedSaves": told.failed,
        "resumedFrom": told.resumed_from,
    }
    return {"checkpoint": {name: value for name, value in found.items() if value is not None}}


def next_attempt(spec: TrainingSpec, status: Mapping[str, Any]) -> str:
    """Where the next attempt begins, as a sentence without its end."""
    if spec.checkpoint is None:
        return ANEW
    known = status.get("checkpoint")
    if known is not None and "step" in known:
        return f"The training goes on from the checkpoint of step {known['step']}{_again(known.get('updatesSince'))}"
    if known is None and spec.checkpoint.resume is Resume.AUTO:
        return "The training goes on from its newest checkpoint, if there is one"
    return f"{ANEW}, for no checkpoint has been saved yet"


def after_suspension(status: Mapping[str, Any]) -> str:
    """What is added to the words about a suspension."""
    step = status.get("checkpoint", {}).get("step")
    return "" if step is None else f", which goes on from the checkpoint of step {step}"


def this_attempt(status: Mapping[str, Any]) -> str:
    """What is added to the words about a training that trains."""
    step = status.get("checkpoint", {}).get("resumedFrom")
    return "" if step is None else f"; this attempt went on from the checkpoint of step {step}"


def _again(updates: int | None) -> str:
    if not updates:
        return ""
    return f" ({updates} updates are made again)" if updates > 1 else " (1 update is made again)"
