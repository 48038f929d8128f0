"""Small builders for the operator's tables."""

from dataclasses import replace
from typing import Any

from paceline_core.launch import Role
from paceline_core.spec import TrainingSpec
from paceline_operator.decisions.decision import DecisionSettings, Observed, pods_of
from paceline_operator.decisions.observe import End, Pod
from paceline_operator.decisions.persisted_state import PersistedState
from paceline_operator.objects.pods import Subject
from paceline_operator.observability.metrics import Metrics

NOW = 1_000_000.0
UID = "0b3e5c1e-0000-4000-8000-000000000000"


def a_spec(workers: int = 2, servers: int = 1, strategy: str = "Synchronous", **more: Any) -> dict[str, Any]:
    container = {"name": "trainer", "image": "example/image:1", "command": ["python", "train.py"]}
    spec: dict[str, Any] = {
        "topology": "ParameterServer",
        "parameterServer": {"replicas": servers, "strategy": strategy},
        "workers": {"replicas": workers, "template": {"spec": {"containers": [container]}}},
    }
    if strategy == "AllReduce":
        spec["topology"] = "AllReduce"
        del spec["parameterServer"]
    return spec | more


def a_subject(raw: dict[str, Any] | None = None) -> Subject:
    raw = raw or a_spec()
    return Subject("digits", "team", UID, TrainingSpec.model_validate(raw), raw)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The value of one series as it is exported; None when there is none."""
    samples = (s for family in metrics.collect() for s in family.samples)
    return next((s.value for s in samples if s.name == name and s.labels == labels), None)


class Scene:
    """A training in some state: pods are changed by replica name, time passes, decisions are taken."""

    def __init__(self, raw: dict[str, Any] | None = None, **state: Any) -> None:
        self.spec = TrainingSpec.model_validate(raw or a_spec())
        self.state = PersistedState(start=NOW, attempt_start=NOW, **state)
        self.now = NOW + 60
        self.pods: dict[str, Pod] = {}
        self.replaceable: frozenset[int] | None = None

    def running(self) -> "Scene":
        for role, ordinal in pods_of(self.spec):
            self.add(role, ordinal)
        self.state = replace(self.state, formed=True)
        return self

    def add(self, role: Role, ordinal: int, **more: Any) -> None:
        name = f"{role}-{ordinal}"
        given = {"uid": f"uid-{name}-{self.state.attempt}", "attempt": self.state.attempt, "phase": "Running"}
        fields = given | {"created": self.now, "ready": True, "scheduled": self.now} | more
        self.pods[name] = Pod(f"digits-{name}", role=role, ordinal=ordinal, **fields)  # type: ignore[arg-type]

    def change(self, name: str, **more: Any) -> "Scene":
        self.pods[name] = replace(self.pods[name], **more)
        return self

    def fail(self, name: str, code: int = 1, details: dict[str, Any] | None = None, **more: Any) -> "Scene":
        end = End(code, details=details or {}, **more)
        return self.change(name, phase="Failed", ready=False, end=end, finished=self.now)

    def succeed(self, *names: str) -> "Scene":
        for name in names:
            self.change(name, phase="Succeeded", ready=False, end=End(0), finished=self.now)
        return self

    @property
    def observed(self) -> Observed:
        pods = list(self.pods.values())
        return Observed(
            self.spec, "team", 1, self.state, pods, self.now, DecisionSettings(), replaceable=self.replaceable
        )
