"""A DistributedTraining in a cluster, looked at through the Kubernetes API; needs neither Prometheus nor a tunnel."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from paceline.views.sources import kubectl, status_answer
from paceline.views.sources.status_answer import Answer, Clean, GoodputAnswer
from paceline.views.sources.training_source import Process, Snapshot
from paceline_core import validation
from paceline_core.errors import SpecError
from paceline_core.launch import Role, replicas
from paceline_core.spec import API_VERSION, TrainingSpec, is_ring

METRICS_PORT = 9090  # of the first process of each pod
ENDED = ("Succeeded", "Failed")


class Spent(Answer):
    """Where the time of a training's whole life went, restarts included."""

    productive: float = Field(default=0.0, alias="productiveSeconds")
    lost: dict[Clean, float] = Field(default_factory=dict, alias="lostSeconds")

    def goodput(self) -> GoodputAnswer:
        """With the sum of it all."""
        return GoodputAnswer(
            seconds=self.productive + sum(self.lost.values()), productive=self.productive, lost=self.lost
        )


class Condition(Answer):
    """One of the conditions."""

    type: Clean
    status: Clean
    message: Clean = ""


class Resource(Answer):
    """The status of a DistributedTraining, as the operator writes it."""

    phase: Clean = "Pending"
    message: Clean = "the operator has not looked at it yet"
    step: int | None = None
    progress: Clean | None = None
    loss: float | None = None
    spent: Spent | None = Field(default=None, alias="goodput")
    conditions: tuple[Condition, ...] = ()

    @property
    def goodput(self) -> GoodputAnswer | None:
        """Where the time went, if it is known."""
        return self.spent.goodput() if self.spent else None

    def __str__(self) -> str:
        loss = f"loss {self.loss:.4f}" if self.loss is not None else ""
        step = f"step {self.step}" if self.step is not None else ""
        slow = next((c.message for c in self.conditions if c.type == "Straggling" and c.status == "True"), "")
        return ", ".join(text for text in (self.message, step, self.progress, loss, slow) if text)


class ClusterTraining:
    """One training, by its name and namespace; needs the right to get pods/proxy."""

    period = 2.0

    def __init__(self, training: str, namespace: str) -> None:
        self.training, self.namespace = training, namespace

    @property
    def name(self) -> str:
        """With its namespace."""
        return f"{self.namespace}/{self.training}"

    @property
    def trace_file(self) -> Path:
        """In the current folder."""
        return Path(f"{self.training}-trace.json")

    def snapshot(self) -> Snapshot:
        """Read the resource, and ask server 0 or the coordinator."""
        found = self._get()
        resource = self._resource(found)
        if resource.phase in ENDED:
            return Snapshot(resource.phase, str(resource), goodput=resource.goodput, ended=True)
        ring = is_ring((found.get("spec") or {}).get("topology"))
        pod = f"{self.training}-{Role.COORDINATOR if ring else Role.SERVER}-0"
        try:
            now = status_answer.read(self._ask(pod, 0, "status"), pod)
        except kubectl.KubectlError as error:
            if error.reason == "Forbidden":
                raise SpecError([f"{self.name} is {resource.phase} ({resource}), but {error}"]) from None
            return Snapshot(resource.phase, f"{resource}; no table, because {error}", goodput=resource.goodput)
        return Snapshot(resource.phase, resource.message, now, resource.goodput)

    def processes(self) -> Sequence[Process]:
        """Every process of the training."""
        found = self._get()
        resource = self._resource(found)
        if resource.phase in ENDED:
            raise SpecError([f"{self.name}: has ended ({resource.phase}), so no process can be asked for its trace"])
        spec = validation.training(found).spec
        return [Process(f"{role}-{ordinal}", self._tracing(spec, role, ordinal)) for role, ordinal in replicas(spec)]

    def _tracing(self, spec: TrainingSpec, role: Role, ordinal: int) -> Callable[[], Any]:
        # the processes of one worker pod listen on one port each, from METRICS_PORT on
        pod, process = divmod(ordinal, spec.workers.processes if role is Role.WORKER else 1)
        return lambda: self._ask(f"{self.training}-{role}-{pod}", process, "trace")

    def _get(self) -> dict[str, Any]:
        path = f"/apis/{API_VERSION}/namespaces/{self.namespace}/distributedtrainings/{self.training}"
        try:
            found = kubectl.get(path)
        except kubectl.KubectlError as error:
            raise SpecError([self._trouble(error)]) from None
        if not isinstance(found, dict):
            raise SpecError([f"{path}: answered something that is no resource"])
        return found

    def _trouble(self, error: kubectl.KubectlError) -> str:
        if error.reason == "Forbidden":
            return f"{self.name}: the right to get distributedtrainings.paceline.dev is missing ({error})"
        if error.unknown_page:
            return f"{self.name}: the cluster does not know {API_VERSION}: install Paceline's chart"
        if error.reason == "NotFound":
            return f"there is no training {self.training} in namespace {self.namespace}, and no run folder of that name"
        return f"{self.name}: {error}"

    def _resource(self, found: dict[str, Any]) -> Resource:
        try:
            return Resource.model_validate(found.get("status") or {})
        except ValidationError as error:
            raise SpecError([f"{self.name}: its status cannot be read: {error.errors()[0]['msg']}"]) from None

    def _ask(self, pod: str, process: int, page: str) -> Any:
        port = METRICS_PORT + process
        try:
            return kubectl.get(f"/api/v1/namespaces/{self.namespace}/pods/{pod}:{port}/proxy/{page}")
        except kubectl.KubectlError as error:
            raise kubectl.KubectlError(error.reason, self._pod_trouble(pod, error)) from None

    def _pod_trouble(self, pod: str, error: kubectl.KubectlError) -> str:
        if error.reason == "Forbidden":
            return f"the right to get pods/proxy in namespace {self.namespace} is missing ({error})"
        if error.unknown_page:
            return f"{pod} has no such page: it runs an older version of Paceline"
        if error.reason == "NotFound":
            return f"the pod {pod} is not there"
        if "timeout" in str(error).lower() or error.reason == "Timeout":
            return f"the API server cannot reach {pod} ({error}); does a network policy forbid it?"
        return f"{pod} does not answer ({error})"
