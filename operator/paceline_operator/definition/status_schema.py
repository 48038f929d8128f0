"""The schema of a training's status, for its definition."""

from typing import Any

from paceline_core import modes
from paceline_core.modes import NOT_WAITING

Schema = dict[str, Any]


def status() -> Schema:
    """The schema of what the operator writes."""
    return _object(
        "Written by the operator.",
        **_state(),
        **_figures(),
        goodput=_goodput(),
        checkpoint=_checkpoint(),
        **_persisted_state(),
    )


def _state() -> dict[str, Schema]:
    condition = _object(
        "One condition.",
        type=_of("string", "Ready, Progressing, Straggling, Suspended, Succeeded, Failed or Finished."),
        status=_of("string", "True or False."),
        observedGeneration=_of("integer", "The generation that it speaks of."),
        lastTransitionTime=_time("When the status last changed."),
        reason=_of("string", "Why, in one word for programs."),
        message=_of("string", "Why, in a sentence for people."),
    )
    observability = _object(
        "How much is exported for Prometheus.",
        level=_of("string", "Detailed, Standard or Aggregated."),
        reason=_of("string", "Why this level, in words."),
    )
    return {
        "observedGeneration": _of("integer", "The generation that the status speaks of."),
        "phase": _of("string", "Pending, Running, Restarting, Suspended, Succeeded or Failed."),
        "reason": _of("string", "What is the matter, in a word."),
        "message": _of("string", "What is the matter, in a sentence."),
        "conditions": _list("The state of the training, fact by fact.", condition, "type"),
        "strategy": _of("string", f"{modes.either()}."),
        "device": _of("string", "What the workers compute on: cpu or gpu."),
        "observability": observability,
    }


def _figures() -> dict[str, Schema]:
    return {
        "workers": _count("The worker pods."),
        "servers": _count("The server pods, or the coordinator."),
        "step": _of("integer", "Steps that every worker has made."),
        "totalSteps": _of("integer", "Steps that each worker will make, if the script tells."),
        "progress": _of("string", "Share of the steps."),
        "loss": _of("number", "The newest loss, the mean of all workers."),
        "reported": _map("Values that the script reported.", _of("number", "A value.")),
        "slowestWorker": _of(
            "string", f"The worker that makes the others wait; in {NOT_WAITING}, that is slower than they."
        ),
        "lastStepTime": _time("When a step was last seen to be made in this attempt."),
    }


def _goodput() -> Schema:
    by_reason = _of("number", "Seconds.")
    return _object(
        "Where the time went, from startTime on; a suspension does not count.",
        ratio=_of("number", "Productive share of the accounted time."),
        summary=_of("string", "The same in percent."),
        productiveSeconds=_of("number", "Time in which the training went on."),
        lostSeconds=_map(
            "Time lost: pending, startup, restart, rework, checkpoint, straggler, data, shutdown.", by_reason
        ),
        accountedTime=_time("The time until which this is the account."),
        stage=_of("string", "What the time since then is: pending, startup, restart, training, or stopped."),
        told=_map("What the training itself had told by then of this attempt.", by_reason),
        step=_of("integer", "Steps of this attempt by then."),
        repeatedSteps=_of("integer", "Steps of earlier attempts: until as many are made again, time is rework."),
    )


def _checkpoint() -> Schema:
    return _object(
        "What is saved of the training, as it last told; only with spec.checkpoint.",
        step=_of("integer", "Updates made until the newest checkpoint."),
        time=_time("When it was saved."),
        updatesSince=_of("integer", "Updates made since then, which would be made again."),
        failedSaves=_of("integer", "Checkpoints of this attempt that could not be saved."),
        resumedFrom=_of("integer", "Step of the checkpoint from which this attempt went on."),
    )


def _persisted_state() -> dict[str, Schema]:
    failure = _object(
        "One failure.",
        scope=_of("string", "What begins anew because of it: `training`, or one replica."),
        replica=_of("string", "The replica that failed."),
        uid=_of("string", "Its pod."),
        attempt=_of("integer", "The attempt in which it failed."),
        reason=_of("string", "Why, in one word."),
        message=_of("string", "Why, in a sentence."),
        time=_time("When it was noticed."),
        counted=_of("boolean", "Whether it counts against runPolicy.backoffLimit."),
    )
    delay = _object(
        "One delay.",
        scope=_of("string", "`training`, or one replica."),
        count=_of("integer", "Failures in a row."),
        until=_time("When it is tried again."),
    )
    by_kind = _map("By kind of failure.", _of("integer", "How often."))
    return {
        "startTime": _time("When the pods were first made, or made again after a suspension."),
        "attemptTime": _time("When this attempt began."),
        "completionTime": _time("When the training finished."),
        "attempt": _of("integer", "How often everything has begun anew."),
        "trained": _of("boolean", "Whether all workers of an earlier attempt had joined."),
        "formed": _of("boolean", "Whether all pods of this attempt have existed."),
        "joined": _of("boolean", "Whether all workers of this attempt have joined."),
        "endedWorkers": _of("string", "Workers of this attempt whose scripts have ended well, for example 0-3,7."),
        "endedTime": _time("When the last of them ended."),
        "restarts": _of("integer", "Failures that count against runPolicy.backoffLimit."),
        "restartsByReason": _map("What began anew because of a failure: by worker or server, and why.", by_kind),
        "failures": _list("The newest failures.", failure),
        "delays": _list("What is tried again later.", delay, "scope"),
    }


def _count(what: str) -> Schema:
    return _object(
        what,
        desired=_of("integer", "How many there should be."),
        ready=_of("integer", "How many run and are ready."),
        succeeded=_of("integer", "How many have ended well."),
        failed=_of("integer", "How many have failed."),
        summary=_of("string", "Those that run or have ended well, of those wanted."),
    )


def _time(what: str) -> Schema:
    return _of("string", what, format="date-time")


def _object(description: str, **properties: Schema) -> Schema:
    return {"type": "object", "description": description, "properties": properties}


def _of(kind: str, description: str, **more: Any) -> Schema:
    return {"type": kind, "description": description, **more}


def _map(description: str, value: Schema) -> Schema:
    return {"type": "object", "description": description, "additionalProperties": value}


def _list(description: str, item: Schema, *keys: str) -> Schema:
    out = {"type": "array", "description": description, "items": item}
    if not keys:
        return out
    kind = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}
    return {**out, "items": {**item, "required": list(keys)}, **kind}
