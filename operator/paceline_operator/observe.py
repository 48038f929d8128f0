"""What there is: a training's pods as the API server tells of them, in the few words that decisions need. Pure."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from paceline_core.launch import Role
from paceline_core.spec import TRAINER_CONTAINER
from paceline_operator import labels

Object = Mapping[str, Any]
MAIN_CONTAINERS = (TRAINER_CONTAINER, "server")
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
    """How a pod's main container ended."""

    code: int
    reason: str = ""
    message: str = ""
    told: Mapping[str, Any] = field(default_factory=dict)  # what the process left in its termination message


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
    scheduled: bool = False
    creating: bool = False  # its containers are being made: volumes mounted, images pulled
    ip: str | None = None
    terminating: float | None = None  # when its time of grace is over
    disruption: Trouble | None = None  # taken away by the cluster
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


def seconds(text: str | None) -> float | None:
    """A Kubernetes time as seconds since the epoch."""
    return None if text is None else datetime.fromisoformat(text).timestamp()


def pods(items: Iterable[Object], owner: str) -> list[Pod]:
    """The pods that belong to the training with the uid `owner`."""
    return [pod(item) for item in items if is_owned(item, owner)]


def is_owned(item: Object, owner: str) -> bool:
    """Whether an object's controller is `owner`."""
    references = item["metadata"].get("ownerReferences", ())
    return any(r["uid"] == owner for r in references)


def pod(item: Object) -> Pod:
    """A pod from its JSON."""
    metadata, status = item["metadata"], item.get("status", {})
    conditions = {c["type"]: c for c in status.get("conditions", ())}
    containers = {c["name"]: c for c in status.get("containerStatuses", ())}
    main: Object = next((containers[name] for name in MAIN_CONTAINERS if name in containers), {})
    end = _end(main.get("state", {}).get("terminated"), status)
    created = seconds(metadata["creationTimestamp"]) or 0.0
    return Pod(
        name=metadata["name"],
        uid=metadata["uid"],
        role=Role(metadata["labels"][labels.ROLE]),
        ordinal=int(metadata["labels"][labels.ORDINAL]),
        attempt=int(metadata["labels"][labels.ATTEMPT]),
        phase=status.get("phase", "Pending"),
        created=created,
        ready=conditions.get("Ready", {}).get("status") == "True",
        scheduled=conditions.get("PodScheduled", {}).get("status") == "True",
        creating=main.get("state", {}).get("waiting", {}).get("reason") in STARTING,
        ip=status.get("podIP"),
        terminating=seconds(metadata.get("deletionTimestamp")),
        disruption=_disruption(conditions.get("DisruptionTarget"), status),
        trouble=_trouble(conditions.get("PodScheduled"), status),
        end=end,
        finished=seconds(main.get("state", {}).get("terminated", {}).get("finishedAt")),
    )


def with_warning(pod: Pod, events: Iterable[Object]) -> Trouble | None:
    """The newest warning about a pod whose containers are not made: a volume that cannot be mounted, say."""
    warnings = [e for e in events if e.get("type") == "Warning" and e["involvedObject"].get("uid") == pod.uid]
    if not warnings:
        return None
    newest = max(warnings, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")
    return Trouble(newest.get("reason", "Warning"), newest.get("message", ""))


def _end(terminated: Object | None, status: Object) -> End | None:
    if terminated is None:
        failed = status.get("phase") == "Failed"
        return End(-1, status.get("reason", ""), status.get("message", "")) if failed else None
    message = terminated.get("message", "")
    try:
        told = json.loads(message)
    except (ValueError, RecursionError):  # pods are not trusted
        told = {}
    return End(terminated["exitCode"], terminated.get("reason", ""), message, told if isinstance(told, dict) else {})


def _disruption(condition: Object | None, status: Object) -> Trouble | None:
    if condition is not None and condition.get("status") == "True":
        reason = condition.get("reason", "")
        return Trouble(LOST_REASONS.get(reason, reason or "Disrupted"), condition.get("message", ""))
    if status.get("phase") == "Failed" and status.get("reason") in ("Evicted", "NodeLost", "Shutdown", "Terminated"):
        return Trouble(status["reason"], status.get("message", ""))
    return None


def _trouble(scheduled: Object | None, status: Object) -> Trouble | None:
    if status.get("phase", "Pending") != "Pending":
        return None
    if scheduled is not None and scheduled.get("status") == "False":
        return Trouble(scheduled.get("reason", "Unschedulable"), scheduled.get("message", ""))
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting")
        if waiting and waiting.get("reason") not in (*STARTING, None):
            return Trouble(waiting["reason"], waiting.get("message", ""))
    return None
