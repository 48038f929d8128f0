"""The launch contract: what a process must be told to take its part, and its form as environment variables.

The local runner and the operator write it; servers and workers read it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from paceline_core import limits
from paceline_core.errors import LaunchError
from paceline_core.limits import START, STEP, Limit
from paceline_core.spec import TrainingSpec

PREFIX = "PACELINE_"
NEWEST = "newest"  # in place of a checkpoint's path: the newest whole one of this training, or its beginning


class Role(StrEnum):
    """What a process is in its training."""

    SERVER = "ps"
    COORDINATOR = "coordinator"
    WORKER = "worker"


class Slowed(StrEnum):
    """What of a worker's step is slowed down."""

    COMPUTE = "compute"
    DATA = "data"
    SEND = "send"


@dataclass(frozen=True)
class Slowdown:
    """A straggler made on purpose: each step takes `seconds` more, or `factor` times its computing, in one part."""

    seconds: float = 0.0
    factor: float = 1.0
    part: Slowed = Slowed.COMPUTE

    @classmethod
    def parse(cls, text: str) -> "Slowdown":
        """Read `30ms`, `0.5s` or `10x`, or one of a part as `send:30ms`; raises ValueError for anything else."""
        name, colon, amount = text.rpartition(":")
        part = Slowed(name) if name in list(Slowed) else Slowed.COMPUTE
        if name == part or not colon:
            for suffix, unit in (("ms", 1e-3), ("s", 1.0)):
                if amount.endswith(suffix) and _is_number(amount.removesuffix(suffix)):
                    return cls(seconds=float(amount.removesuffix(suffix)) * unit, part=part)
            if amount.endswith("x") and _is_number(amount[:-1]) and float(amount[:-1]) >= 1:
                return cls(factor=float(amount[:-1]), part=part)
        raise ValueError(
            f"{text!r} is not a slowdown: write a time added to each step (30ms, 0.5s) or a factor (10x), and "
            "before it data: or send: if it is not the computing that is to be slow"
        )


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


@dataclass(frozen=True)
class Launch:
    """Everything one process is told. Addresses are `host:port`, or `fd:N` for a listening socket it inherits."""

    role: Role
    ordinal: int
    training: str
    training_id: str  # 32 hexadecimal digits, new for every run
    spec: TrainingSpec
    servers: tuple[str, ...]  # one for each shard; in a ring the coordinator's alone
    incarnation: int = 0  # greater for a process that takes the place of one that was lost
    replaced: bool = False  # whether a lost worker is started again
    listen: str = "127.0.0.1:0"  # servers: where to accept workers
    metrics: str = "127.0.0.1:0"  # where to serve /metrics and /trace (and, on server 0 or the coordinator, /status)
    tls: str | None = None  # folder with ca.pem, cert.pem, key.pem of this process; None with transport Insecure
    output: str | None = None  # folder for weights, logs of arrivals and of steps
    termination_log: str | None = None  # file for the reason of a failure, as in Kubernetes
    replay: str | None = None  # arrival log to follow
    resume: str | None = None  # checkpoint to go on from, or NEWEST
    slowdown: str | None = None  # for example 30ms, 10x or send:30ms
    started: float | None = None  # when the training began, in Unix time, if not with this process
    grace: float = 0.0  # seconds from SIGTERM to SIGKILL, in which a checkpoint can be saved
    node: str = ""  # where the process runs, if its host name does not tell
    extra: Mapping[str, str] = field(default_factory=dict)  # further variables, passed through

    @property
    def name(self) -> str:
        """The replica's name, for example worker-2."""
        return f"{self.role}-{self.ordinal}"

    @property
    def first_server(self) -> str:
        """The name of shard 0, or of the coordinator."""
        role, ordinal = replicas(self.spec)[0]
        return f"{role}-{ordinal}"

    @property
    def world_size(self) -> int:
        """How many workers there are."""
        return self.spec.world_size

    @property
    def start_limit(self) -> Limit:
        """How long a process waits at most for others to join."""
        return Limit(self.spec.run_policy.start_timeout_seconds, START)

    @property
    def step_limit(self) -> Limit:
        """How long a process waits at most for another that has joined."""
        return Limit(self.spec.gradients.timeout_seconds, STEP)

    @property
    def end_limit(self) -> float:
        """How long a process that was told to end waits at most for a checkpoint before it does, in seconds."""
        return limits.to_end(self.grace)

    def to_environment(self) -> dict[str, str]:
        """The variables to start the process with."""
        texts: dict[str, str | None] = {
            "ROLE": str(self.role),
            "ORDINAL": str(self.ordinal),
            "TRAINING": self.training,
            "TRAINING_ID": self.training_id,
            "SPEC": self.spec.without_templates().model_dump_json(by_alias=True, exclude_defaults=True),
            "SERVERS": ",".join(self.servers),
            "INCARNATION": str(self.incarnation),
            "REPLACED": "1" if self.replaced else None,
            "LISTEN": self.listen,
            "METRICS": self.metrics,
            "TLS": self.tls,
            "OUTPUT": self.output,
            "TERMINATION_LOG": self.termination_log,
            "REPLAY": self.replay,
            "RESUME": self.resume,
            "SLOWDOWN": self.slowdown,
            "STARTED": None if self.started is None else str(self.started),
            "GRACE": str(self.grace) if self.grace else None,
            "NODE": self.node or None,
        }
        own = {PREFIX + k: v for k, v in texts.items() if v is not None}
        return own | self._rendezvous() | dict(self.extra)

    def _rendezvous(self) -> dict[str, str]:
        """What a script reads that calls torch.distributed.init_process_group itself, as torchrun tells it."""
        if self.role is not Role.WORKER or not self.spec.ring:
            return {}
        host, _, port = self.servers[0].rpartition(":")
        return {
            "RANK": str(self.ordinal),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
        }

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Launch | None":
        """The launch that the environment describes; None when it names no training. Raises LaunchError."""
        if PREFIX + "ROLE" not in environment:
            return None
        try:
            get = {k.removeprefix(PREFIX): v for k, v in environment.items() if k.startswith(PREFIX)}.get
            launch = cls(
                role=Role(environment[PREFIX + "ROLE"]),
                ordinal=int(environment[PREFIX + "ORDINAL"]),
                training=environment[PREFIX + "TRAINING"],
                training_id=environment[PREFIX + "TRAINING_ID"],
                spec=TrainingSpec.model_validate(json.loads(environment[PREFIX + "SPEC"])),
                servers=tuple(environment[PREFIX + "SERVERS"].split(",")),
                incarnation=int(get("INCARNATION", "0")),
                replaced=get("REPLACED") == "1",
                listen=get("LISTEN", "127.0.0.1:0"),
                metrics=get("METRICS", "127.0.0.1:0"),
                tls=get("TLS"),
                output=get("OUTPUT"),
                termination_log=get("TERMINATION_LOG"),
                replay=get("REPLAY"),
                resume=get("RESUME"),
                slowdown=get("SLOWDOWN"),
                started=float(environment[PREFIX + "STARTED"]) if PREFIX + "STARTED" in environment else None,
                grace=float(get("GRACE", "0")),
                node=get("NODE") or "",
            )
            if len(bytes.fromhex(launch.training_id)) != 16:
                raise ValueError(f"{PREFIX}TRAINING_ID must be 32 hexadecimal digits")
        except KeyError as error:
            raise LaunchError(
                f"{PREFIX}ROLE is set but {error.args[0]} is not: start the script with Paceline"
            ) from None
        except ValueError as error:
            raise LaunchError(f"the {PREFIX}* variables are not ones that Paceline wrote: {error}") from error
        return launch


def local_environments(environment: Mapping[str, str]) -> list[dict[str, str]]:
    """What each process of a replica is told beyond the pod's environment: its rank, its GPU, its metrics port.

    A worker pod's ordinal counts pods; each of its processes is a worker with an ordinal of its own. Raises ValueError.
    """
    count = int(environment.get(PREFIX + "PROCESSES", "1"))
    if count == 1:
        return [{}]
    first = int(environment[PREFIX + "ORDINAL"]) * count
    host, _, port = environment[PREFIX + "METRICS"].rpartition(":")
    gpus, ring = PREFIX + "GPUS" in environment, "RANK" in environment
    alone = gpus and ring  # a DDP script takes the GPU of its local rank, and the only one that it sees is number 0
    return [
        {
            PREFIX + "ORDINAL": str(first + index),
            PREFIX + "METRICS": f"{host}:{int(port) + index}",
            "LOCAL_RANK": "0" if alone else str(index),
        }
        | ({"RANK": str(first + index), "LOCAL_WORLD_SIZE": "1" if alone else str(count)} if ring else {})
        | ({"CUDA_VISIBLE_DEVICES": str(index)} if gpus else {})
        for index in range(count)
    ]


def replicas(spec: TrainingSpec) -> tuple[tuple[Role, int], ...]:
    """The processes of a training, servers first: (role, ordinal)."""
    first = [(Role.COORDINATOR, 0)] if spec.ring else [(Role.SERVER, i) for i in range(spec.server.replicas)]
    return tuple(first + [(Role.WORKER, i) for i in range(spec.world_size)])
