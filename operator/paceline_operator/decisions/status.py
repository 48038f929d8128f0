"""The status that people read: phase, conditions and figures. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from paceline_core import metric_series
from paceline_core.attribution import Cause
from paceline_core.launch import Role
from paceline_operator.decisions import completion, goodput, resumption
from paceline_operator.decisions.decision import Decision, Observed, pods_of
from paceline_operator.decisions.goodput import Ledger, Stage
from paceline_operator.decisions.observe import Pod, Trouble
from paceline_operator.decisions.persisted_state import PersistedState, text, whole
from paceline_operator.decisions.training_answer import SlowWorker, Straggler, TrainingProgress
from paceline_operator.objects import pod_templates

Object = dict[str, Any]
DELETED = ". It is deleted "
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
class CurrentPhase:
    """The phase that a training is in, why in one word, and why in a sentence."""

    phase: str
    reason: str
    message: str


def status(
    it: Observed, decision: Decision, progress: TrainingProgress | None, warnings: Mapping[str, Trouble], before: Object
) -> Object:
    """The whole new status."""
    saved = resumption.figures(it, progress, before)
    current = _current_phase(it, decision, progress, warnings, {**before, **saved})
    ended = current.phase in ("Succeeded", "Failed")
    facts = {
        "Ready": (current.phase == "Running", current.reason, current.message),
        "Progressing": (current.phase in ("Pending", "Running", "Restarting"), current.reason, current.message),
        STRAGGLING: _straggling(decision.state, progress, before),
        "Suspended": (current.phase == "Suspended", current.reason, current.message),
        "Succeeded": (current.phase == "Succeeded", current.reason, current.message),
        "Failed": (current.phase == "Failed", current.reason, current.message),
        "Finished": (ended, current.reason, current.message),
    }
    return {
        "observedGeneration": it.generation,
        "phase": current.phase,
        "reason": current.reason,
        "message": current.message,
        "device": "gpu" if it.spec.workers.gpus else "cpu",
        "observability": {"level": str(metric_series.level(it.spec)), "reason": metric_series.why(it.spec)},
        **decision.state.to_status(),
        **_figures(it, progress, before),
        **saved,
        **_goodput(it, decision.state, progress, before),
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


def _current_phase(
    it: Observed, decision: Decision, progress: TrainingProgress | None, warnings: Mapping[str, Trouble], before: Object
) -> CurrentPhase:
    state, broken = decision.state, decision.state.broken
    if state.result is not None:
        result = state.message.partition(DELETED)[0]  # it is read back from what was written
        return CurrentPhase(state.result, state.reason, result + _until_deleted(it))
    if state.suspended:
        text_ = "runPolicy.suspend is true: set it to false to run the training" + resumption.after_suspension(before)
        return CurrentPhase("Suspended", "Suspended", text_)
    if broken is not None:
        where = resumption.next_attempt(it.spec, before)
        text_ = f"{broken.message}. {where}: restart {state.attempt + 1}" + _budget(it, state.restarts)
        return CurrentPhase("Restarting", broken.reason, text_)
    stuck = _stuck(it, warnings)
    if stuck is not None:
        return stuck
    ending = _ending(it)
    if ending is not None:
        return ending
    started, wanted = _started(it), len(pods_of(it.spec))
    if started < wanted:
        replaced = next((f for f in reversed(state.failures) if f.attempt == state.attempt), None)
        if replaced is not None and it.spec.replaces_alone:
            others = "wait for it" if it.spec.knobs.waits_for_all else "go on"
            text_ = f"{replaced.message}. It is replaced; the others {others}"
            return CurrentPhase("Running", replaced.reason, text_)
        return CurrentPhase("Pending", "PodsStarting", f"{started} of {wanted} pods have started")
    said = before.get("reason") == "Training" and state.attempt == before.get("attempt", 0)
    if not (progress.training if progress else said):  # an operator that was just started has not asked yet
        return CurrentPhase(
            "Running", "WorkersJoining", "all pods run; waiting for every worker to call paceline.distribute()"
        )
    return CurrentPhase("Running", "Training", "all workers train" + resumption.this_attempt(before))


def _started(it: Observed) -> int:
    begun = {(p.role, p.ordinal) for p in it.current if p.phase in ("Running", "Succeeded")}
    return len(begun | {(Role.WORKER, i) for i in it.ended_workers})


def _ending(it: Observed) -> CurrentPhase | None:
    """All scripts have ended, and servers take long to do so too."""
    if not completion.workers_are_done(it) or completion.seconds_since_the_last(it) < ENDING_SECONDS:
        return None
    names = ", ".join(p.replica for p in completion.waited_for(it))
    task = "write the weights and end" if pod_templates.saves(it.spec) else "end"
    text_ = f"all scripts have ended; waiting for {names} to {task}"
    return CurrentPhase("Running", "ServersEnding", text_) if names else None


def _budget(it: Observed, restarts: int) -> str:
    return f" ({restarts} of {it.spec.run_policy.backoff_limit} that runPolicy.backoffLimit allows are used)"


def _until_deleted(it: Observed) -> str:
    ttl = it.spec.run_policy.ttl_seconds_after_finished
    return "" if ttl is None else f"{DELETED}{ttl} s after its end, as runPolicy.ttlSecondsAfterFinished says"


def _stuck(it: Observed, warnings: Mapping[str, Trouble]) -> CurrentPhase | None:
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
    return CurrentPhase("Pending", next(iter(troubles))[0], "; ".join(said))


def _straggling(state: PersistedState, progress: TrainingProgress | None, before: Object) -> Fact:
    """Who makes the others wait; what is not known now stays as it was in the same attempt."""
    if state.result is not None or state.suspended or state.broken is not None:
        return NOBODY_WAITS
    if progress is None:
        old = next((c for c in before.get("conditions", ()) if c["type"] == STRAGGLING), None)
        if old is None or state.attempt != before.get("attempt", 0):
            return NOBODY_WAITS
        return old["status"] == "True", old["reason"], old["message"]
    if progress.straggler is not None:
        return True, SLOW.get(progress.straggler.cause or Cause.UNKNOWN, "SlowWorker"), _waiting(progress.straggler)
    if progress.slow_worker is not None:
        return False, "NobodyWaits", _alone(progress.slow_worker)
    return NOBODY_WAITS


def _waiting(it: Straggler) -> str:
    since = f" since {datetime.fromtimestamp(it.since, UTC):%H:%M:%S} UTC" if it.since else ""
    of_round = f" of {it.round * 1e3:.0f} ms" if it.round else ""
    cost = f"; it costs {it.cost:.0%} of the throughput" if it.cost is not None else ""
    lag = f"{it.share:.0%} of all waiting, {it.lag * 1e3:.0f} ms in each round{of_round}"
    return f"{it.worker} makes the others wait{since}: {lag}{cost}{_because(it.cause)}"


def _alone(it: SlowWorker) -> str:
    how = "slow and stale" if it.stale else "slow"
    return f"{it.worker} is {how}, but nobody waits for it{_because(it.cause)}"


def _because(cause: Cause | None) -> str:
    return f"; cause: {BECAUSE[cause]}" if cause else ""


def _stage(it: Observed, state: PersistedState, progress: TrainingProgress | None) -> Stage:
    """What the training's time is spent on."""
    if state.result is not None or state.suspended:
        return Stage.STOPPED
    if state.broken is not None:
        return Stage.RESTART
    if progress is not None and progress.training and (progress.time_spent is None or progress.time_spent.begun):
        return Stage.TRAINING
    return Stage.STARTUP if _started(it) == len(pods_of(it.spec)) else Stage.PENDING


def _goodput(it: Observed, state: PersistedState, progress: TrainingProgress | None, before: Object) -> Object:
    """The ledger of productive and lost time, from the first pods until the end."""
    if state.start is None or (state.result is not None and "goodput" not in before):
        return {}
    start, now = whole(state.start), it.now if state.completion is None else whole(state.completion)
    ledger = Ledger.from_status(before["goodput"]) if "goodput" in before else Ledger(start)
    if ledger.stage is Stage.STOPPED:  # only a resumption, with a new start, ends it
        now = max(now, start)
    ledger = goodput.account(ledger, _stage(it, state, progress), now, progress.time_spent if progress else None)
    return {"goodput": ledger.to_status()}


def _figures(it: Observed, progress: TrainingProgress | None, before: Object) -> Object:
    """How many there are, and how far they have come; what is not known now stays as it was."""
    pods, workers = it.current, it.spec.workers.replicas
    out: Object = {
        "strategy": it.spec.mode,
        "workers": _count([p for p in pods if p.is_worker], workers, it.ended_workers),
        "servers": _count([p for p in pods if not p.is_worker], len(pods_of(it.spec)) - workers),
    }
    kept = ("step", "totalSteps", "progress", "loss", "reported", "slowestWorker", "lastStepTime")
    fresh = it.state.attempt == before.get("attempt", 0)
    if progress is None or progress.step is None:
        return out | {k: before[k] for k in kept if k in before and fresh}
    slowest = progress.straggler or progress.slow_worker
    same = fresh and progress.step == before.get("step") and "lastStepTime" in before
    total = progress.total_steps or (before.get("totalSteps") if fresh else None)
    found: Object = {
        "step": progress.step,
        "totalSteps": total,
        "progress": f"{progress.step / total:.0%}" if total else None,
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
