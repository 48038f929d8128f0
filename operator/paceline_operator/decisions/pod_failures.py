"""Why a pod failed: one row for each kind, in the order in which they are tried. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from paceline_operator.decisions.observe import End, Pod

SHOWN = 1500  # characters of a traceback or message in a condition
PERMANENT = (
    "ModelMismatch",
    "UsageError",
    "LaunchError",
    "WeightsDiffer",
    "NotFinite",
)  # Paceline's errors that come again with every attempt; not StoreRefused, for credentials may come back
# Kinds of failures, for counting; every other reason is a crash.
KINDS = {
    "OutOfMemory": "oom",
    "Evicted": "evicted",
    "Preempted": "preempted",
    "PodDeleted": "deleted",
    **dict.fromkeys(("NodeLost", "NodeShutdown", "Shutdown", "Terminated", "Unschedulable"), "node"),
    **dict.fromkeys(("ErrImagePull", "ImagePullBackOff", "InvalidImageName"), "image"),
}


@dataclass(frozen=True)
class FailureCause:
    """Why one pod failed. `victim`: it failed because another did."""

    reason: str
    message: str
    counted: bool = True
    victim: bool = False
    permanent: bool = False


def cause(pod: Pod) -> FailureCause | None:
    """Why this pod failed or is being taken away; None while it is well."""
    if pod.stopped and pod.disruption is not None:
        return FailureCause(pod.disruption.reason, f"{pod.replica}: {pod.disruption.message}", counted=False)
    if pod.phase != "Failed":
        return _deleted(pod) if pod.stopped else None
    if pod.end is None or pod.end.code == -1:
        words = f"{pod.end.reason} {pod.end.message}".strip() if pod.end else "no container has ended"
        return FailureCause("PodFailed", f"{pod.replica}: {words}", counted=not pod.stopped)
    return _exited(pod, pod.end)


def _exited(pod: Pod, end: End) -> FailureCause:
    who = f"{pod.replica}'s init container {end.container}" if end.container else pod.replica
    if end.reason == "OOMKilled":
        return FailureCause(
            "OutOfMemory",
            f"{who} used more memory than the limit of its container and was killed: raise "
            "resources.limits.memory, or make the batch smaller",
        )
    if end.reason in ("StartError", "ContainerCannotRun"):
        return FailureCause("StartError", f"{who} could not be started: {end.message[-SHOWN:]}")
    if pod.stopped:
        return _deleted(pod)
    if end.container:
        said = f": {end.message[-SHOWN:].strip()}" if end.message else ""
        return FailureCause("InitContainerFailed", f"{who} ended with exit code {end.code}{said}")
    if "kind" in end.details:
        kind, message = str(end.details["kind"]), " ".join(str(end.details.get("message", "")).split())[:SHOWN]
        return FailureCause(
            "ScriptFailed",
            f"{pod.replica} failed: {kind}: {message}",
            victim=bool(end.details.get("victim")),
            permanent=kind in PERMANENT,
        )
    return FailureCause("ExitCode", f"{pod.replica} ended with exit code {end.code}")


def _deleted(pod: Pod) -> FailureCause:
    return FailureCause("PodDeleted", f"{pod.replica}: its pod was deleted", counted=False)


def kind(reason: str) -> str:
    """oom, evicted, preempted, deleted, node, image or crash."""
    return KINDS.get(reason, "crash")


def root_cause(causes: Sequence[tuple[Pod, FailureCause]]) -> tuple[Pod, FailureCause]:
    """The first that is nobody's victim: what the cluster did, then what ended earliest."""
    return min(causes, key=lambda pc: (pc[1].victim, pc[1].counted, pc[0].finished or float("inf"), pc[0].name))
