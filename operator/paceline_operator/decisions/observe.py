"""Observed pods: a training's pods as the API server describes them, reduced to what decisions need. Pure.

A pod has ended when its main container has, whatever runs beside it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from paceline_core.launch import Role
from paceline_core.pod_template import TRAINER_CONTAINER
from paceline_operator.objects import labels
from paceline_operator.objects.pod_templates import SERVER_CONTAINER

Object = Mapping[str, Any]
ENDED = ("Succeeded", "Failed")
STARTING = ("ContainerCreating", "PodInitializing")
LOST_REASONS = {
    "TerminationByKubelet": "NodeShutdown",
    "PreemptionByScheduler": "Preempted",
    "EvictionByEvictionAPI": "Evicted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
}


@dataclass(frozen=True)
class Trouble:
    """Why a pod does not start, in the scheduler's or kubelet's own words."""

    reason: str
    message: str


@dataclass(frozen=True)
class End:
    """How a pod's main container ended, or the init container without which it never began."""

    code: int
    reason: str = ""
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)  # the JSON object in its termination message
    container: str = ""  # the init container


@dataclass(frozen=True)
class Pod:
    """One pod of a training. Times are seconds since the epoch."""

    name: str
    uid: str
    role: Role
    ordinal: int
    attempt: int
    phase: str
    created: float
    ready: bool = False
    lingers: bool = False  # it has ended, but other containers run on
    scheduled: float | None = None
    creating: bool = False  # its containers are being made: volumes mounted, images pulled
    ip: str | None = None
    terminating: float | None = None  # when its time of grace is over
    disruption: Trouble | None = None  # taken away by the cluster
    taken: float | None = None  # when the cluster or a user began to take it away
    trouble: Trouble | None = None
    end: End | None = None
    finished: float | None = None

    @property
    def replica(self) -> str:
        """For example worker-3."""
        return labels.replica_name(self.role, self.ordinal)

    @property
    def is_worker(self) -> bool:
        """Whether it trains."""
        return self.role is Role.WORKER

    @property
    def runs(self) -> bool:
        """Whether a container of it runs, or may yet."""
        return self.lingers or self.phase in ("Pending", "Running")

    @property
    def stopped(self) -> bool:
        """Whether it is being taken away, or ended because of that: even in order, as programs do that are told to."""
        if self.terminating is None and self.disruption is None:
            return False
        return self.finished is None or (self.taken is not None and self.finished >= self.taken)

    @property
    def succeeded(self) -> bool:
        """Whether its program ended well by itself."""
        return self.phase == "Succeeded" and not self.stopped


def seconds(text: str | None) -> float | None:
    """A Kubernetes time as seconds since the epoch."""
    return None if text is None else datetime.fromisoformat(text).timestamp()


def pods(items: Iterable[Object], owner: str) -> list[Pod]:
    """The pods that belong to the training with the uid `owner`."""
    return [pod(item) for item in items if is_owned(item, owner)]


def earlier(items: Iterable[Object], owner: str) -> bool:
    """Whether pods of an earlier training of the same name are still there."""
    return any(r["kind"] == labels.KIND and r["uid"] != owner for i in items for r in _owners(i))


def is_owned(item: Object, owner: str) -> bool:
    """Whether an object belongs to the training with the uid `owner`."""
    return any(r["uid"] == owner for r in _owners(item))


def _owners(item: Object) -> Sequence[Object]:
    owners: Sequence[Object] = item["metadata"].get("ownerReferences", ())
    return owners


def pod(item: Object) -> Pod:
    """A pod from its JSON."""
    metadata, status = item["metadata"], item.get("status", {})
    conditions = {c["type"]: c for c in status.get("conditions", ())}
    containers = {c["name"]: c for c in status.get("containerStatuses", ())}
    role = Role(metadata["labels"][labels.ROLE])
    main: Object = containers.get(TRAINER_CONTAINER if role is Role.WORKER else SERVER_CONTAINER, {})
    terminated = main.get("state", {}).get("terminated")
    phase, scheduled = _phase(status, terminated), conditions.get("PodScheduled", {})
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        role=role,
        ordinal=int(metadata["labels"][labels.ORDINAL]),
        attempt=int(metadata["labels"][labels.ATTEMPT]),
        phase=phase,
        created=seconds(metadata["creationTimestamp"]) or 0.0,
        ready=conditions.get("Ready", {}).get("status") == "True",
        lingers=phase in ENDED and status.get("phase") not in ENDED and any(map(_goes_on, containers.values())),
        scheduled=seconds(scheduled.get("lastTransitionTime")) if scheduled.get("status") == "True" else None,
        creating=main.get("state", {}).get("waiting", {}).get("reason") in STARTING,
        ip=status.get("podIP"),
        terminating=seconds(metadata.get("deletionTimestamp")),
        disruption=_disruption(conditions.get("DisruptionTarget"), status),
        taken=_taken(metadata, conditions.get("DisruptionTarget"), status),
        trouble=_trouble(scheduled, status),
        end=_end(terminated, status),
        finished=seconds((terminated or {}).get("finishedAt")),
    )


def _goes_on(container: Object) -> bool:
    return "terminated" not in container.get("state", {})


def with_warning(pod: Pod, events: Iterable[Object]) -> Trouble | None:
    """The newest warning about a pod whose containers are not made: a volume that cannot be mounted, say.

    What was said before it was scheduled, or before its images were pulled, is over.
    """
    about = [(_said(e), e) for e in events if e["involvedObject"].get("uid") == pod.uid]
    since = max([pod.scheduled or 0.0, *(time for time, e in about if e.get("reason") == "Pulling")])
    warnings = [(t, e) for t, e in about if e.get("type") == "Warning" and t >= since]
    warnings = [(t, e) for t, e in warnings if e.get("reason") != "FailedScheduling"]
    if not warnings:
        return None
    _, newest = max(warnings, key=lambda each: each[0])
    return Trouble(newest.get("reason", "Warning"), newest.get("message", ""))


def _said(event: Object) -> float:
    """When an event was last said; the scheduler's have no `lastTimestamp`."""
    again = (event.get("series") or {}).get("lastObservedTime")
    return seconds(again or event.get("lastTimestamp") or event.get("eventTime")) or 0.0


def _phase(status: Object, terminated: Object | None) -> str:
    """Pending, Running, Succeeded or Failed, as the main container has it, unless the whole pod was ended."""
    phase = str(status.get("phase", "Pending"))
    if terminated is None or (phase == "Failed" and status.get("reason")):
        return phase
    return "Failed" if terminated["exitCode"] else "Succeeded"


def _end(terminated: Object | None, status: Object) -> End | None:
    name = ""
    if terminated is None:
        if status.get("phase") != "Failed":
            return None
        name, terminated = _failed_init_container(status)
        if terminated is None:
            return End(-1, status.get("reason", ""), status.get("message", ""))
    message = terminated.get("message", "")
    try:
        details = json.loads(message)
    except (ValueError, RecursionError):  # pods are not trusted
        details = {}
    details = details if isinstance(details, dict) else {}
    return End(terminated["exitCode"], terminated.get("reason", ""), message, details, name)


def _failed_init_container(status: Object) -> tuple[str, Object | None]:
    for container in status.get("initContainerStatuses", ()):
        terminated = container.get("state", {}).get("terminated")
        if terminated and terminated["exitCode"]:
            return container["name"], terminated
    return "", None


def _disruption(condition: Object | None, status: Object) -> Trouble | None:
    if condition is not None and condition.get("status") == "True":
        reason = condition.get("reason", "")
        return Trouble(LOST_REASONS.get(reason, reason or "Disrupted"), condition.get("message", ""))
    if _is_ended_by_kubelet(status):
        return Trouble(status["reason"], status.get("message", ""))
    return None


def _is_ended_by_kubelet(status: Object) -> bool:
    return status.get("phase") == "Failed" and status.get("reason") in ("Evicted", "NodeLost", "Shutdown", "Terminated")


def _taken(metadata: Object, condition: Object | None, status: Object) -> float | None:
    """When somebody asked for its deletion, or the cluster announced it."""
    times = []
    if "deletionTimestamp" in metadata:
        grace = metadata.get("deletionGracePeriodSeconds") or 0
        times.append((seconds(metadata["deletionTimestamp"]) or 0.0) - grace)
    if condition is not None and condition.get("status") == "True":
        times.append(seconds(condition.get("lastTransitionTime")) or 0.0)
    return min(times, default=0.0 if _is_ended_by_kubelet(status) else None)


def _trouble(scheduled: Object, status: Object) -> Trouble | None:
    if status.get("phase", "Pending") != "Pending":
        return None
    if scheduled.get("status") == "False":
        return Trouble(scheduled.get("reason", "Unschedulable"), scheduled.get("message", ""))
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in (*STARTING, None):
            return Trouble(waiting["reason"], waiting.get("message", ""))
    return None
