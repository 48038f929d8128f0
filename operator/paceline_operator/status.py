"""The status that people read: phase, conditions and figures, in plain words. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from paceline_core import telemetry
from paceline_core.attribution import Cause
from paceline_core.launch import Role
from paceline_core.spec import Topology
from paceline_operator import farewell, goodput, templates
from paceline_operator.answer import Progress, Slow, Verdict
from paceline_operator.goodput import Ledger, Stage
from paceline_operator.memory import Memory, text, whole
from paceline_operator.observe import Pod, Trouble
from paceline_operator.situation import Decision, Situation, replicas

Object = dict[str, Any]
Fact = tuple[bool, str, str]  # whether a condition holds, reason, message
CONDITIONS = ("Ready", "Progressing", "Straggling", "Suspended", "Succeeded", "Failed", "Finished")
STRAGGLING = "Straggling"
NOBODY_WAITS = (False, "NobodyWaits", "no worker makes the others wait")
SLOW = {Cause.DATA: "SlowData", Cause.COMPUTE: "SlowCompute", Cause.SEND: "SlowSend"}
BECAUSE = {Cause.DATA: "its data", Cause.COMPUTE: "computing", Cause.SEND: "sending", Cause.UNKNOWN: "not known"}
TROUBLES_SHOWN = 3
ENDING_SECONDS = 5.0  # that servers may take to end before it is said that they are waited for
ADVICE = {
    "Unschedulable": "free or add nodes, or ask for less",
    "ErrImagePull": "check spec.workers.template's image and imagePullSecrets",
    "ImagePullBackOff": "check spec.workers.template's image and imagePullSecrets",
    "InvalidImageName": "mend the image's name",
}


@dataclass(frozen=True)
class Word:
    """What is the matter, in one word and in one sentence."""

    phase: str
    reason: str
    message: str


def status(
    it: Situation, decision: Decision, progress: Progress | None, warnings: Mapping[str, Trouble], before: Object
) -> Object:
    """The whole new status."""
    word = _word(it, decision, progress, warnings, before)
    ended = word.phase in ("Succeeded", "Failed")
    facts = {
        "Ready": (word.phase == "Running", word.reason, word.message),
        "Progressing": (word.phase in ("Pending", "Running", "Restarting"), word.reason, word.message),
        STRAGGLING: _straggling(decision.memory, progress, before),
        "Suspended": (word.phase == "Suspended", word.reason, word.message),
        "Succeeded": (word.phase == "Succeeded", word.reason, word.message),
        "Failed": (word.phase == "Failed", word.reason, word.message),
        "Finished": (ended, word.reason, word.message),
    }
    return {
        "observedGeneration": it.generation,
        "phase": word.phase,
        "reason": word.reason,
        "message": word.message,
        "device": "gpu" if it.spec.workers.gpus else "cpu",
        "observability": {"level": str(telemetry.level(it.spec)), "reason": telemetry.why(it.spec)},
        **decision.memory.to_status(),
        **_figures(it, progress, before),
        **_goodput(it, decision.memory, progress, before),
        "conditions": _conditions(facts, before.get("conditions", ()), it.generation, it.now),
    }


def refused(
    generation: int, now: float, before: Object, reason: str, problems: Sequence[str], waits: bool = False
) -> Object:
    """The status of a training that cannot be run as it is written, or that waits for leave to make its pods."""
    message = "; ".join(problems)
    true = ("Progressing",) if waits else ("Failed", "Finished")
    facts = {name: (name in true, reason, message) for name in CONDITIONS} | {STRAGGLING: NOBODY_WAITS}
    ledger = Ledger.from_status(before["goodput"]) if "goodput" in before and not waits else None
    return {
        **before,
        "observedGeneration": generation,
        "phase": "Pending" if waits else "Failed",
        "reason": reason,
        "message": message,
        **({"goodput": goodput.account(ledger, Stage.STOPPED, whole(now)).to_status()} if ledger else {}),
        "conditions": _conditions(facts, before.get("conditions", ()), generation, now),
    }


def _word(
    it: Situation, decision: Decision, progress: Progress | None, warnings: Mapping[str, Trouble], before: Object
) -> Word:
    memory, broken = decision.memory, decision.memory.broken
    if memory.result is not None:
        return Word(memory.result, memory.reason, memory.message + _until_deleted(it))
    if memory.suspended:
        return Word("Suspended", "Suspended", "runPolicy.suspend is true: set it to false to run the training")
    if broken is not None:
        text_ = f"{broken.message}. Everything begins anew: restart {memory.attempt + 1}" + _budget(it, memory.restarts)
        return Word("Restarting", broken.reason, text_)
    stuck = _stuck(it, warnings)
    if stuck is not None:
        return stuck
    ending = _ending(it)
    if ending is not None:
        return ending
    started, wanted = _started(it), len(replicas(it.spec))
    if started < wanted:
        replaced = next((f for f in reversed(memory.failures) if f.attempt == memory.attempt), None)
        if replaced is not None and it.spec.asynchronous:
            return Word("Running", replaced.reason, f"{replaced.message}. It is replaced; the others go on")
        return Word("Pending", "PodsStarting", f"{started} of {wanted} pods have started")
    said = before.get("reason") == "Training" and memory.attempt == before.get("attempt", 0)
    if not (progress.training if progress else said):  # an operator that was just started has not asked yet
        return Word("Running", "WorkersJoining", "all pods run; waiting for every worker to call paceline.distribute()")
    return Word("Running", "Training", "all workers train")


def _started(it: Situation) -> int:
    begun = {(p.role, p.ordinal) for p in it.current if p.phase in ("Running", "Succeeded")}
    return len(begun | {(Role.WORKER, i) for i in it.ended_workers})


def _ending(it: Situation) -> Word | None:
    """All scripts have ended, and servers take long to do so too."""
    if not farewell.workers_are_done(it) or farewell.seconds_since_the_last(it) < ENDING_SECONDS:
        return None
    names = ", ".join(p.replica for p in farewell.waited_for(it))
    task = "write the weights and end" if templates.saves(it.spec) else "end"
    text_ = f"all scripts have ended; waiting for {names} to {task}"
    return Word("Running", "ServersEnding", text_) if names else None


def _budget(it: Situation, restarts: int) -> str:
    return f" ({restarts} of {it.spec.run_policy.backoff_limit} that runPolicy.backoffLimit allows are used)"


def _until_deleted(it: Situation) -> str:
    ttl = it.spec.run_policy.ttl_seconds_after_finished
    return "" if ttl is None else f". It is deleted {ttl} s after its end, as runPolicy.ttlSecondsAfterFinished says"


def _stuck(it: Situation, warnings: Mapping[str, Trouble]) -> Word | None:
    """Pods that cannot start, told in the words of the scheduler or kubelet; the same words are told once."""
    troubles: dict[tuple[str, str], list[str]] = {}
    for pod in it.current:
        trouble = pod.trouble or warnings.get(pod.uid)
        if trouble is not None and pod.phase == "Pending":
            troubles.setdefault((trouble.reason, trouble.message), []).append(pod.replica)
    if not troubles:
        return None
    said = []
    for (reason, message), names in list(troubles.items())[:TROUBLES_SHOWN]:
        advice = f" ({ADVICE[reason]})" if reason in ADVICE else ""
        shown = ", ".join(names[:TROUBLES_SHOWN]) + (
            f" and {len(names) - TROUBLES_SHOWN} more" if len(names) > TROUBLES_SHOWN else ""
        )
        said.append(f"{shown}: {message or reason}{advice}")
    return Word("Pending", next(iter(troubles))[0], "; ".join(said))


def _straggling(memory: Memory, progress: Progress | None, before: Object) -> Fact:
    """Who makes the others wait; what is not known now stays as it was in the same attempt."""
    if memory.result is not None or memory.suspended or memory.broken is not None:
        return NOBODY_WAITS
    if progress is None:
        old = next((c for c in before.get("conditions", ()) if c["type"] == STRAGGLING), None)
        if old is None or memory.attempt != before.get("attempt", 0):
            return NOBODY_WAITS
        return old["status"] == "True", old["reason"], old["message"]
    if progress.verdict is not None:
        return True, SLOW.get(progress.verdict.cause or Cause.UNKNOWN, "SlowWorker"), _waiting(progress.verdict)
    if progress.slow is not None:
        return False, "NobodyWaits", _alone(progress.slow)
    return NOBODY_WAITS


def _waiting(it: Verdict) -> str:
    since = f" since {datetime.fromtimestamp(it.since, UTC):%H:%M:%S} UTC" if it.since else ""
    of_round = f" of {it.round * 1e3:.0f} ms" if it.round else ""
    cost = f"; it costs {it.cost:.0%} of the throughput" if it.cost is not None else ""
    lag = f"{it.share:.0%} of all waiting, {it.lag * 1e3:.0f} ms in each round{of_round}"
    return f"{it.worker} makes the others wait{since}: {lag}{cost}{_because(it.cause)}"


def _alone(it: Slow) -> str:
    how = "slow and stale" if it.stale else "slow"
    return f"{it.worker} is {how}, but nobody waits for it{_because(it.cause)}"


def _because(cause: Cause | None) -> str:
    return f"; cause: {BECAUSE[cause]}" if cause else ""


def _stage(it: Situation, memory: Memory, progress: Progress | None) -> Stage:
    """What the training's time is spent on."""
    if memory.result is not None or memory.suspended:
        return Stage.STOPPED
    if memory.broken is not None:
        return Stage.RESTART
    if progress is not None and progress.training and (progress.told is None or progress.told.begun):
        return Stage.TRAINING
    return Stage.STARTUP if _started(it) == len(replicas(it.spec)) else Stage.PENDING


def _goodput(it: Situation, memory: Memory, progress: Progress | None, before: Object) -> Object:
    """The ledger of productive and lost time, from the first pods until the end."""
    if memory.start is None or (memory.result is not None and "goodput" not in before):
        return {}
    start, now = whole(memory.start), it.now if memory.completion is None else whole(memory.completion)
    ledger = Ledger.from_status(before["goodput"]) if "goodput" in before else Ledger(start)
    if ledger.stage is Stage.STOPPED:  # only a resumption, with a new start, ends it
        now = max(now, start)
    ledger = goodput.account(ledger, _stage(it, memory, progress), now, progress.told if progress else None)
    return {"goodput": ledger.to_status()}


def _figures(it: Situation, progress: Progress | None, before: Object) -> Object:
    """How many there are, and how far they have come; what is not known now stays as it was."""
    pods, workers = it.current, it.spec.workers.replicas
    out: Object = {
        "strategy": "AllReduce" if it.spec.topology is Topology.ALL_REDUCE else str(it.spec.server.strategy),
        "workers": _count([p for p in pods if p.is_worker], workers, it.ended_workers),
        "servers": _count([p for p in pods if not p.is_worker], len(replicas(it.spec)) - workers),
    }
    kept = ("step", "totalSteps", "progress", "loss", "reported", "slowestWorker", "lastStepTime")
    fresh = it.memory.attempt == before.get("attempt", 0)
    if progress is None or progress.step is None:
        return out | {k: before[k] for k in kept if k in before and fresh}
    slowest = progress.verdict or progress.slow
    same = fresh and progress.step == before.get("step") and "lastStepTime" in before
    found: Object = {
        "step": progress.step,
        "totalSteps": progress.total_steps,
        "progress": f"{progress.step / progress.total_steps:.0%}" if progress.total_steps else None,
        "loss": progress.loss,
        "reported": dict(progress.reported or {}) or None,
        "slowestWorker": slowest.worker if slowest else None,
        "lastStepTime": before["lastStepTime"] if same else text(it.now) if progress.training else None,
    }
    return out | {k: v for k, v in found.items() if v is not None}


def _count(pods: Sequence[Pod], desired: int, ended: frozenset[int] = frozenset()) -> Object:
    ready = sum(p.ready and p.phase == "Running" for p in pods)
    succeeded = len(ended | {p.ordinal for p in pods if p.succeeded})
    return {
        "desired": desired,
        "ready": ready,
        "succeeded": succeeded,
        "failed": sum(p.phase == "Failed" for p in pods),
        "summary": f"{ready + succeeded}/{desired}",
    }


def _conditions(facts: Mapping[str, Fact], before: Sequence[Object], generation: int, now: float) -> list[Object]:
    """The conditions, with the time at which each last changed its status."""
    old = {c["type"]: c for c in before}
    out = []
    for name in CONDITIONS:
        holds, reason, message = facts[name]
        state = "True" if holds else "False"
        same = old.get(name, {}).get("status") == state
        out.append(
            {
                "type": name,
                "status": state,
                "observedGeneration": generation,
                "lastTransitionTime": old[name]["lastTransitionTime"] if same else text(now),
                "reason": reason,
                "message": message,
            }
        )
    return out
