"""The pod templates of a training: the workers', and what the servers have of it without one of their own. Pure."""

import posixpath
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from paceline_core.checkpoint_policy import is_in_object_store
from paceline_core.launch import Role
from paceline_core.pod_template import TRAINER_CONTAINER
from paceline_core.spec import TrainingSpec

Raw = Mapping[str, Any]
SERVER_CONTAINER = "server"
OUTPUT_FOLDER = "/var/run/paceline/output"
# Servers run the workers' image, so they have what it takes to pull and run it, but they need none of their hardware.
IMAGE = ("image", "imagePullPolicy")
INHERITED_ALWAYS = ("imagePullSecrets", "terminationGracePeriodSeconds")  # all save a last checkpoint together
INHERITED = (*INHERITED_ALWAYS, "securityContext", "serviceAccountName", "priorityClassName", "tolerations")
INHERITED_SECURITY = ("runAsUser", "runAsGroup", "runAsNonRoot")  # of the container
INHERITED_NODES = ("kubernetes.io/arch", "kubernetes.io/os")  # of the node selector: where the image runs at all


def without_nulls(value: Any) -> Any:
    """A part of a resource without fields that are null, which Kubernetes takes for unset."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


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
    given = raw.get(spec.member, {}).get("template")
    if given is None:
        return {"spec": {**_inherited(workers["spec"]), "containers": [_server(trainer)]}}
    common = _only(workers["spec"], INHERITED_ALWAYS)
    containers = [{**image, **c} if c["name"] == SERVER_CONTAINER else c for c in given["spec"]["containers"]]
    return {**given, "spec": {**common, **given["spec"], "containers": containers}}


def mounts(container: Raw) -> set[str]:
    """The folders at which a container mounts something."""
    return {str(m.get("mountPath", "")).rstrip("/") for m in container.get("volumeMounts") or ()}


def place_problem(spec: TrainingSpec, raw: Raw) -> str | None:
    """Why who writes checkpoints cannot keep them in the folder that is asked for; None when all can, or keep none.

    Servers write their own shards; in a ring each worker writes a share, and the coordinator completes it. Whether they
    reach an object store only they can tell.
    """
    if spec.checkpoint is None:
        return None
    field, to = "spec.checkpoint.to", spec.checkpoint.to
    writers = [(Role.SERVER, "the servers")]
    if spec.ring:
        writers = [(Role.COORDINATOR, "the coordinator"), (Role.WORKER, "the workers")]
    if to is None:
        who = " and ".join(f"{name} ({_place(spec, role)})" for role, name in writers)
        return (
            f"{field}: is required in a cluster: a folder on a volume that is mounted by {who}, or the URL of an "
            "object store, as s3://BUCKET/PREFIX"
        )
    if is_in_object_store(to):
        return None
    for role, name in writers:
        pod = of_role(spec, raw, role)["spec"]
        problem = _mount_problem(pod, _container(role), to, name, _place(spec, role))
        if problem is not None:
            return f"{field}: {to} is on {problem}"
    return None


def _place(spec: TrainingSpec, role: Role) -> str:
    """Where a role's mounts are written."""
    member = "workers" if role is Role.WORKER else spec.member
    return f"spec.{member}.template, container `{_container(role)}`"


def _container(role: Role) -> str:
    return TRAINER_CONTAINER if role is Role.WORKER else SERVER_CONTAINER


def _mount_problem(pod: Raw, container: str, to: str, who: str, place: str) -> str | None:
    found = _mount_around(named(pod, container), to)
    if found is None:
        return f"no volume of {who}: mount one there in {place}"
    where = f"the volume {found['name']}"
    if found.get("readOnly"):
        return f"{where}, which is mounted readOnly by {who}: let them write to it"
    if any(v["name"] == found["name"] and "emptyDir" in v for v in pod.get("volumes", ())):
        return f"{where}, an emptyDir, which is gone with its pod: use a persistentVolumeClaim"
    return None


def _mount_around(container: Raw, folder: str) -> Raw | None:
    """The mount on which a folder is."""
    wanted = PurePosixPath(posixpath.normpath(folder))
    around = [m for m in container.get("volumeMounts", ()) if wanted.is_relative_to(_normal(m))]
    return max(around, key=lambda m: len(_normal(m)), default=None)


def _normal(mount: Raw) -> str:
    return posixpath.normpath(str(mount["mountPath"]))


def saves(spec: TrainingSpec) -> bool:
    """Whether the servers write the weights to a volume."""
    if spec.ring or spec.server.template is None:
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
