"""The pod templates of a training: the workers', and what the servers have of it without one of their own. Pure."""

from collections.abc import Mapping
from typing import Any

from paceline_core.launch import Role
from paceline_core.spec import TRAINER_CONTAINER, Topology, TrainingSpec

Raw = Mapping[str, Any]
SERVER_CONTAINER = "server"
OUTPUT_FOLDER = "/var/run/paceline/output"
# Servers run the workers' image, so they have what it takes to pull and run it, but they need none of their hardware.
IMAGE = ("image", "imagePullPolicy")
INHERITED = ("imagePullSecrets", "securityContext", "serviceAccountName", "priorityClassName", "tolerations")
INHERITED_SECURITY = ("runAsUser", "runAsGroup", "runAsNonRoot")  # of the container
INHERITED_NODES = ("kubernetes.io/arch", "kubernetes.io/os")  # of the node selector: where the image runs at all


def without_nulls(value: Any) -> Any:
    """A part of a resource without fields that are null, which Kubernetes takes for unset."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def member(spec: TrainingSpec) -> str:
    """The part of the specification that speaks of the servers or the coordinator."""
    return "allReduce" if spec.topology is Topology.ALL_REDUCE else "parameterServer"


def named(pod: Raw, name: str) -> Raw:
    """The container of this name. Raises StopIteration."""
    return next(c for c in pod["containers"] if c["name"] == name)


def of_role(spec: TrainingSpec, raw: Raw, role: Role) -> Raw:
    """The template of a role's pods; `raw` is the resource's `spec`."""
    workers: Raw = raw["workers"]["template"]
    if role is Role.WORKER:
        return workers
    trainer = named(workers["spec"], TRAINER_CONTAINER)
    image = _only(trainer, IMAGE)
    given = raw.get(member(spec), {}).get("template")
    if given is None:
        return {"spec": {**_inherited(workers["spec"]), "containers": [_server(trainer)]}}
    secrets = _only(workers["spec"], ("imagePullSecrets",))
    containers = [{**image, **c} if c["name"] == SERVER_CONTAINER else c for c in given["spec"]["containers"]]
    return {**given, "spec": {**secrets, **given["spec"], "containers": containers}}


def mounts(container: Raw) -> set[str]:
    """The folders at which a container mounts something."""
    return {str(m.get("mountPath", "")).rstrip("/") for m in container.get("volumeMounts") or ()}


def saves(spec: TrainingSpec) -> bool:
    """Whether the servers write the weights to a volume."""
    if spec.topology is Topology.ALL_REDUCE or spec.server.template is None:
        return False
    servers = [c for c in spec.server.template.spec.containers if c.name == SERVER_CONTAINER]
    return any(OUTPUT_FOLDER in mounts(c.model_extra or {}) for c in servers)


def _inherited(workers: Raw) -> Raw:
    nodes = _only(workers.get("nodeSelector", {}), INHERITED_NODES)
    return {**_only(workers, INHERITED), **({"nodeSelector": nodes} if nodes else {})}


def _server(trainer: Raw) -> Raw:
    user = _only(trainer.get("securityContext", {}), INHERITED_SECURITY)
    return {"name": SERVER_CONTAINER, **_only(trainer, IMAGE), **({"securityContext": user} if user else {})}


def _only(of: Raw, names: tuple[str, ...]) -> Raw:
    return {name: of[name] for name in names if name in of}
