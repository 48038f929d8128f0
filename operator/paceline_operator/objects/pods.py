"""A training's pods, with their Service, Secret and NetworkPolicy. Pure: plain objects; no builder edits its input."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from paceline_core import metric_series, validation
from paceline_core.launch import NEWEST, PREFIX, Launch, Role
from paceline_core.pod_template import GRACE_SECONDS, TRAINER_CONTAINER
from paceline_core.spec import Level, TrainingSpec, Transport
from paceline_operator.decisions.decision import pods_of
from paceline_operator.objects import credentials, labels, pod_templates, quantity
from paceline_operator.objects.pod_templates import OUTPUT_FOLDER, SERVER_CONTAINER, named

Object = dict[str, Any]
WIRE_PORT, METRICS_PORT = 7070, 9090
EVERYWHERE = "[::]"  # of IPv4 and IPv6
TLS_FOLDER, SHARED_MEMORY_FOLDER = "/var/run/paceline/tls", "/dev/shm"  # noqa: S108 - the pod's own
TLS_VOLUME, SHARED_MEMORY_VOLUME = "paceline-tls", "paceline-shm"
TERMINATION_LOG = "/dev/termination-log"
# For a Prometheus that finds pods by annotation.
SCRAPE_ANNOTATIONS = {"prometheus.io/scrape": "true", "prometheus.io/port": str(METRICS_PORT)}
# -P: a file in the working folder, such as a resource.py of the user's, is not what our processes import.
ENTRYPOINT = ["python", "-P", "-m", "paceline.entrypoint"]
SERVER = ["python", "-P", "-m", "paceline.server"]
NODE = {"name": PREFIX + "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}


@dataclass(frozen=True)
class Subject:
    """The training that objects are made for."""

    name: str
    namespace: str
    uid: str
    spec: TrainingSpec
    raw: Mapping[str, Any]  # the resource's `spec`, whose pod templates are passed through as they are

    @classmethod
    def of(cls, training: Object) -> "Subject":
        """From the resource. Raises SpecError; for odd templates KeyError, TypeError, AttributeError or ValueError."""
        metadata, raw = training["metadata"], pod_templates.without_nulls(training["spec"])
        spec = validation.training({**training, "spec": raw}).spec
        return cls(metadata["name"], metadata["namespace"], metadata["uid"], spec, raw)

    @property
    def metadata(self) -> Object:
        """What the metadata of every object has."""
        owner = {
            "apiVersion": f"{labels.GROUP}/{labels.VERSION}",
            "kind": labels.KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
        }
        return {"namespace": self.namespace, "labels": labels.of_training(self.name), "ownerReferences": [owner]}


def service(it: Subject) -> Object:
    """The headless Service that gives each pod a name."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**it.metadata, "name": it.name},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # servers are found before all of them are ready
            "selector": {labels.TRAINING: it.name},
            "ports": [{"name": "wire", "port": WIRE_PORT}, {"name": "metrics", "port": METRICS_PORT}],
        },
    }


def secret(it: Subject, issued: Mapping[str, Mapping[str, bytes]]) -> Object:
    """The Secret of all certificates; each pod mounts its own."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {**it.metadata, "name": labels.secret_name(it.name, it.uid)},
        "immutable": True,
        "type": "Opaque",
        "data": credentials.secret_data(issued),
    }


def network_policy(it: Subject, operator_namespace: str, metrics_from: Sequence[Object]) -> Object:
    """Only the training's own pods reach one another; the operator and the named peers reach the metrics."""
    own = {"podSelector": {"matchLabels": {labels.TRAINING: it.name}}}
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator_namespace}},
        "podSelector": {"matchLabels": labels.OPERATOR},
    }
    last = METRICS_PORT + it.spec.workers.processes - 1
    ports = [{"protocol": "TCP", "port": METRICS_PORT} | ({"endPort": last} if last > METRICS_PORT else {})]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {**it.metadata, "name": it.name},
        "spec": {
            "podSelector": {"matchLabels": {labels.TRAINING: it.name}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [own]}, {"from": [operator, *metrics_from], "ports": ports}],
        },
    }


def pod(it: Subject, role: Role, ordinal: int, attempt: int, incarnation: int, resumes: bool = False) -> Object:
    """The pod of one replica; with `resumes` it goes on from the newest checkpoint, if there is one."""
    template = pod_templates.of_role(it.spec, it.raw, role)
    name = labels.pod_name(it.name, role, ordinal)
    main = TRAINER_CONTAINER if role is Role.WORKER else SERVER_CONTAINER
    spec = deepcopy(template["spec"])
    launch = _launch(it, role, ordinal, attempt, incarnation, pod_templates.mounts(named(spec, main)))
    grace = float(spec.get("terminationGracePeriodSeconds", GRACE_SECONDS))
    launch = replace(launch, resume=NEWEST if resumes else None, grace=grace)
    spec["containers"] = [_container(it, c, launch) if c["name"] == main else c for c in spec["containers"]]
    spec["containers"] = [_confined(c) for c in spec["containers"]]
    if "initContainers" in spec:
        spec["initContainers"] = [_confined(c) for c in spec["initContainers"]]
    spec["volumes"] = [*spec.get("volumes", ()), *_volumes(it, role, ordinal, spec)]
    given = template.get("metadata", {})
    scraped, annotations = (labels.SCRAPED, SCRAPE_ANNOTATIONS) if _is_scraped(it.spec, role) else ({}, {})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **it.metadata,
            "name": name,
            "labels": {**scraped, **given.get("labels", {}), **labels.of_pod(it.name, role, ordinal, attempt)},
            "annotations": {**annotations, **given.get("annotations", {})},
        },
        "spec": {
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            **spec,
            "restartPolicy": "Never",
            "hostname": name,
            "subdomain": it.name,
            "securityContext": _pod_security(spec.get("securityContext", {})),
        },
    }


def problems(it: Subject) -> list[str]:
    """What is wrong with the templates that only the operator can find; raises an error if a pod cannot be made."""
    out = []
    for path, role in (("workers", Role.WORKER), (it.spec.member, pods_of(it.spec)[0][0])):
        spec, where = pod_templates.of_role(it.spec, it.raw, role)["spec"], f"spec.{path}.template.spec"
        taken = {v.get("name") for v in spec.get("volumes", ())} & {TLS_VOLUME, SHARED_MEMORY_VOLUME}
        out += [f"{where}.volumes: the name {name} is Paceline's own; choose another" for name in sorted(taken)]
        out += [wrong for container in spec["containers"] for wrong in _wrong_container(container, where)]
        names = [c["name"] for c in spec["containers"]]
        if role is not Role.WORKER and SERVER_CONTAINER not in names:
            out.append(f"{where}.containers: needs one named `{SERVER_CONTAINER}`; found: {', '.join(names)}")
        if role is Role.WORKER and not named(spec, TRAINER_CONTAINER).get("image"):
            out.append(f"{where}.containers[{TRAINER_CONTAINER}].image: is required in a cluster")
        if not out:
            pod(it, role, 0, 0, 0)
    place = None if out else pod_templates.place_problem(it.spec, it.raw)
    return out if place is None else [place]


def _wrong_container(container: Mapping[str, Any], where: str) -> list[str]:
    place = f"{where}.containers[{container['name']}]"
    own = [e["name"] for e in container.get("env", ()) if e["name"].startswith(PREFIX)]
    out = [f"{place}.env: {name} is set by the operator" for name in own]
    try:
        quantity.number(_limits(container).get("cpu", 0))
    except ValueError as error:
        out.append(f"{place}.resources.limits.cpu: {error}")
    return out


def training_id(uid: str, attempt: int) -> str:
    """Another for each attempt, so that a straggler of an earlier one is refused: 32 hexadecimal digits."""
    return hashlib.sha256(f"{uid}/{attempt}".encode()).hexdigest()[:32]


def _launch(it: Subject, role: Role, ordinal: int, attempt: int, incarnation: int, mounts: set[str]) -> Launch:
    names = [labels.pod_name(it.name, r, i) for r, i in pods_of(it.spec) if r is not Role.WORKER]
    extra = {}
    if role is Role.WORKER:
        if it.spec.workers.processes > 1:
            extra[PREFIX + "PROCESSES"] = str(it.spec.workers.processes)
        if it.spec.workers.gpus:
            extra[PREFIX + "GPUS"] = str(it.spec.workers.gpus)
    return Launch(
        role=role,
        ordinal=ordinal,
        training=it.name,
        training_id=training_id(it.uid, attempt),
        spec=it.spec,
        servers=tuple(f"{name}.{it.name}.{it.namespace}.svc:{WIRE_PORT}" for name in names),
        incarnation=incarnation,
        replaced=it.spec.replaces_alone,
        listen=f"{EVERYWHERE}:{WIRE_PORT}",
        metrics=f"{EVERYWHERE}:{METRICS_PORT}",
        tls=TLS_FOLDER if it.spec.security.transport is Transport.TLS else None,
        output=OUTPUT_FOLDER if OUTPUT_FOLDER in mounts else None,
        termination_log=TERMINATION_LOG,
        extra=extra,
    )


def _container(it: Subject, given: Mapping[str, Any], launch: Launch) -> Object:
    """The container that trains or serves, with Paceline's environment around what the template says."""
    command = list(given.get("command", ())) if launch.role is Role.WORKER else SERVER
    environment = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(_threads(given, it.spec))} | launch.to_environment()
    own = {e["name"] for e in given.get("env", ())}
    out = {
        **given,
        "command": [*ENTRYPOINT, *command],
        "env": [
            *({"name": k, "value": v} for k, v in environment.items() if k not in own),
            NODE,
            *given.get("env", ()),
        ],
        "ports": [*given.get("ports", ()), *_ports(launch, it.spec)],
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    mounts = [*given.get("volumeMounts", ())]
    if launch.tls:
        mounts.append({"name": TLS_VOLUME, "mountPath": TLS_FOLDER, "readOnly": True})
    if _needs_shared_memory(given):
        mounts.append({"name": SHARED_MEMORY_VOLUME, "mountPath": SHARED_MEMORY_FOLDER})
    if mounts:
        out["volumeMounts"] = mounts
    return out


def _ports(launch: Launch, spec: TrainingSpec) -> list[Object]:
    """The wire of a server; the metrics of each process of a worker: metrics, metrics-1, ..."""
    if launch.role is not Role.WORKER:
        return [{"name": "wire", "containerPort": WIRE_PORT}, {"name": "metrics", "containerPort": METRICS_PORT}]
    names = ("metrics", *(f"metrics-{i}" for i in range(1, spec.workers.processes)))
    return [{"name": name, "containerPort": METRICS_PORT + i} for i, name in enumerate(names)]


def _threads(container: Mapping[str, Any], spec: TrainingSpec) -> int:
    """CPU threads of each process: its part of the CPU limit; 1 without a limit, as torchrun does."""
    limit = quantity.number(_limits(container).get("cpu", 0))
    processes = spec.workers.processes if container["name"] == TRAINER_CONTAINER else 1
    return max(1, math.floor(limit / processes))


def _needs_shared_memory(container: Mapping[str, Any]) -> bool:
    """Data loaders and NCCL use /dev/shm, of which a container has 64 MiB: GPU pods get more, unless they mount it."""
    gpus = any(name.endswith("/gpu") for name in _limits(container))
    return gpus and SHARED_MEMORY_FOLDER not in pod_templates.mounts(container)


def _limits(container: Mapping[str, Any]) -> Mapping[str, Any]:
    limits: Mapping[str, Any] = container.get("resources", {}).get("limits", {})
    return limits


def _volumes(it: Subject, role: Role, ordinal: int, spec: Mapping[str, Any]) -> list[Object]:
    out: list[Object] = []
    if it.spec.security.transport is Transport.TLS:
        items = credentials.items(it.spec, role, ordinal)
        out.append({"name": TLS_VOLUME, "secret": {"secretName": labels.secret_name(it.name, it.uid), "items": items}})
    mounted = {m.get("name") for c in spec["containers"] for m in c.get("volumeMounts", ())}
    if SHARED_MEMORY_VOLUME in mounted:
        out.append({"name": SHARED_MEMORY_VOLUME, "emptyDir": {"medium": "Memory"}})
    return out


def _pod_security(given: Mapping[str, Any]) -> Object:
    """What Pod Security *restricted* asks of a pod, where the template does not say otherwise."""
    return {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **given}


def _confined(container: Mapping[str, Any]) -> Object:
    """What Pod Security *restricted* asks of a container, where the template does not say otherwise."""
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {**container, "securityContext": {**confined, **container.get("securityContext", {})}}


def _is_scraped(spec: TrainingSpec, role: Role) -> bool:
    """At level Aggregated the servers tell of the workers."""
    return role is not Role.WORKER or metric_series.level(spec) is not Level.AGGREGATED
