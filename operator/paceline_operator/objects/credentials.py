"""Which certificate each pod of a training has: one of its own, or, in a very large training, one for a few workers.

All of a training's certificates are in one Secret, made by one write, and a Secret holds 1 MiB.
"""

import base64
import math
from collections.abc import Mapping

from paceline_core.launch import Role
from paceline_core.spec import TrainingSpec
from paceline_operator.objects import labels

AUTHORITY, FILES = "ca.pem", ("ca.pem", "cert.pem", "key.pem")  # as a process is told of its TLS folder
MOST_CERTIFICATES = 1000  # of workers; each takes 0.8 kB


def servers(spec: TrainingSpec) -> list[str]:
    """The names of the servers, or of the coordinator."""
    if spec.ring:
        return [labels.replica_name(Role.COORDINATOR, 0)]
    return [labels.replica_name(Role.SERVER, ordinal) for ordinal in range(spec.server.replicas)]


def workers(spec: TrainingSpec) -> dict[str, range]:
    """For each certificate of workers: the ranks of the processes of the pods that have it."""
    pods, size, processes = spec.workers.replicas, _pods_of_one(spec), spec.workers.processes
    return {
        labels.replica_name(Role.WORKER, first): range(first * processes, min(first + size, pods) * processes)
        for first in range(0, pods, size)
    }


def name_of(spec: TrainingSpec, role: Role, ordinal: int) -> str:
    """The certificate of one pod."""
    return labels.replica_name(role, ordinal - ordinal % _pods_of_one(spec) if role is Role.WORKER else ordinal)


def secret_data(issued: Mapping[str, Mapping[str, bytes]]) -> dict[str, str]:
    """What the Secret holds of these certificates; the authority's once."""
    data = {_key(name, file): text for name, files in issued.items() for file, text in files.items()}
    return {name: base64.b64encode(text).decode() for name, text in data.items()}


def items(spec: TrainingSpec, role: Role, ordinal: int) -> list[dict[str, str]]:
    """What a pod mounts of the Secret."""
    name = name_of(spec, role, ordinal)
    return [{"key": _key(name, file), "path": file} for file in FILES]


def _key(name: str, file: str) -> str:
    return file if file == AUTHORITY else f"{name}.{file}"


def _pods_of_one(spec: TrainingSpec) -> int:
    return math.ceil(spec.workers.replicas / MOST_CERTIFICATES)
