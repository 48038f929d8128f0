"""The resource `DistributedTraining`, as frozen models: the single source of validation, documentation and the CRD."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

API_VERSION = "paceline.dev/v1alpha1"
KIND = "DistributedTraining"
TRAINER_CONTAINER = "trainer"


class Strict(BaseModel):
    """Frozen, camelCase outside, and closed: an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Open(BaseModel):
    """Part of a pod template: the fields that Paceline reads are typed, the others pass through to Kubernetes."""

    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True)


class Topology(StrEnum):
    """Where the parameters live."""

    PARAMETER_SERVER = "ParameterServer"
    ALL_REDUCE = "AllReduce"


class Strategy(StrEnum):
    """When a parameter server applies gradients."""

    SYNCHRONOUS = "Synchronous"
    ASYNCHRONOUS = "Asynchronous"


class OnStale(StrEnum):
    """What a worker does after its gradient was rejected as too stale."""

    RECOMPUTE = "Recompute"
    NEXT_BATCH = "NextBatch"


class Transport(StrEnum):
    """How the wire is protected."""

    TLS = "TLS"
    INSECURE = "Insecure"


class Level(StrEnum):
    """How many time series a training exports."""

    AUTO = "Auto"
    DETAILED = "Detailed"
    STANDARD = "Standard"
    AGGREGATED = "Aggregated"


class CleanPodPolicy(StrEnum):
    """Which pods are removed when a training has finished."""

    NONE = "None"
    RUNNING = "Running"
    ALL = "All"


class EnvVar(Open):
    """One environment variable of a container."""

    name: str = Field(description="Name of the variable.", min_length=1)
    value: str = Field(default="", description="Its value. Default: empty.")


class Container(Open):
    """One container of a pod template; every other field of a Kubernetes container is passed through."""

    name: str = Field(description="Name of the container; the one named `trainer` runs the training script.")
    image: str | None = Field(default=None, description="Image to run; ignored by `paceline run`.")
    command: tuple[str, ...] = Field(default=(), description="Program and first arguments, not run in a shell.")
    args: tuple[str, ...] = Field(default=(), description="Further arguments.")
    env: tuple[EnvVar, ...] = Field(default=(), description="Environment variables.")
    working_dir: str | None = Field(default=None, description="Folder to run in. Default: the image's, or the current.")


class PodSpec(Open):
    """The `spec` of a pod template."""

    containers: tuple[Container, ...] = Field(description="Containers of the pod.", min_length=1)


class PodTemplate(Open):
    """A Kubernetes PodTemplateSpec."""

    metadata: dict[str, Any] = Field(default_factory=dict, description="Labels and annotations for the pods.")
    spec: PodSpec = Field(description="The pod's specification, as in Kubernetes.")


def _has_command(template: PodTemplate) -> PodTemplate:
    named = [c for c in template.spec.containers if c.name == TRAINER_CONTAINER]
    if len(named) != 1:
        names = ", ".join(c.name for c in template.spec.containers)
        raise ValueError(f"needs exactly one container named `{TRAINER_CONTAINER}`; found: {names}")
    if not named[0].command:
        raise ValueError(f"container `{TRAINER_CONTAINER}` needs a command, for example [python, train.py]")
    return template


def _whole_gpus(template: PodTemplate) -> PodTemplate:
    for container in template.spec.containers:
        limits = ((container.model_extra or {}).get("resources") or {}).get("limits") or {}
        for name, count in limits.items():
            if name.endswith("/gpu") and not str(count).isdigit():
                raise ValueError(f"container `{container.name}`: limit {name} is {count!r}, and must be a whole number")
    return template


class Asynchronous(Strict):
    """Settings of the strategy Asynchronous."""

    max_staleness: int = Field(
        default=8,
        ge=0,
        description="Greatest delay, in updates, between the parameters a gradient was computed from and those it is "
        "applied to; a gradient with a greater delay is rejected. Default: 8.",
    )
    on_stale: OnStale = Field(
        default=OnStale.RECOMPUTE,
        description="What a worker does after a rejection: Recompute the gradient of the same batch (needs the data "
        "to come through paceline.shard) or go on with the NextBatch. Default: Recompute.",
    )


class ParameterServer(Strict):
    """Servers that hold the parameters and update them."""

    replicas: int = Field(default=1, ge=1, le=64, description="Server processes; each holds a shard. Default: 1.")
    strategy: Strategy = Field(
        default=Strategy.SYNCHRONOUS,
        description="Synchronous applies the mean of all workers' gradients; Asynchronous applies each as it "
        "arrives. Default: Synchronous.",
    )
    asynchronous: Asynchronous | None = Field(default=None, description="Only with strategy Asynchronous.")
    template: PodTemplate | None = Field(default=None, description="Pod template of the servers. Default: generated.")

    @model_validator(mode="after")
    def _settings_match_strategy(self) -> Self:
        if self.asynchronous is not None and self.strategy is not Strategy.ASYNCHRONOUS:
            raise ValueError(f"`asynchronous` is set but strategy is {self.strategy}: remove it, or set Asynchronous")
        return self

    @property
    def staleness(self) -> Asynchronous:
        """The asynchronous settings in force, defaults included."""
        return self.asynchronous or Asynchronous()


class AllReduce(Strict):
    """Every worker holds all parameters; gradients are summed in a ring."""

    backend: Literal["Auto", "Gloo", "NCCL"] = Field(
        default="Auto", description="Library that reduces: NCCL on GPUs, Gloo on CPUs. Default: Auto."
    )
    template: PodTemplate | None = Field(default=None, description="Pod template of the coordinator.")


class Workers(Strict):
    """Processes that compute gradients."""

    replicas: int = Field(default=1, ge=1, le=10_000, description="Worker pods. Default: 1.")
    processes_per_replica: Literal["Auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        default="Auto",
        description="Processes in each worker pod, each a worker of its own with a rank: a number, or Auto for one "
        "for each GPU in the limits of container `trainer`, and one without GPUs. Default: Auto.",
    )
    template: Annotated[PodTemplate, AfterValidator(_has_command), AfterValidator(_whole_gpus)] = Field(
        description="Pod template; its container `trainer` runs the training script."
    )

    @property
    def gpus(self) -> int:
        """GPUs of each replica: what the limits of container `trainer` ask for."""
        container = next(c for c in self.template.spec.containers if c.name == TRAINER_CONTAINER)
        limits = ((container.model_extra or {}).get("resources") or {}).get("limits") or {}
        return sum(int(count) for name, count in limits.items() if name.endswith("/gpu"))

    @property
    def processes(self) -> int:
        """Worker processes in each replica."""
        return max(1, self.gpus) if self.processes_per_replica == "Auto" else self.processes_per_replica


class Gradients(Strict):
    """How gradients travel."""

    bucket_mib: float = Field(
        default=4.0, gt=0, le=1024, description="Size of a bucket, in MiB: the unit of sending. Default: 4."
    )
    connections: int = Field(default=1, ge=1, le=16, description="Connections from a worker to a server. Default: 1.")
    overlap: bool = Field(
        default=True,
        description="Send gradients while backward still runs. Gradients that change between backward and step "
        "(clipping, unscaling) are noticed and sent again. Default: true.",
    )
    timeout_seconds: float = Field(
        default=600, gt=0, description="Longest that a process waits for another, in seconds. Default: 600."
    )


class Checkpoint(Strict):
    """Reserved: this version cannot save checkpoints, and refuses to run a training that asks for them."""

    every_steps: int = Field(ge=1, description="Updates between two checkpoints.")
    keep: int = Field(default=2, ge=1, description="Checkpoints to keep. Default: 2.")


class Observability(Strict):
    """What is measured and exported."""

    level: Level = Field(default=Level.AUTO, description="How many series to export. Default: Auto.")


class Security(Strict):
    """Protection of the wire."""

    transport: Transport = Field(
        default=Transport.TLS, description="TLS 1.3 with a certificate for each role, or Insecure. Default: TLS."
    )


class RunPolicy(Strict):
    """The life of a training."""

    suspend: bool = Field(default=False, description="Do not run yet. Default: false.")
    ttl_seconds_after_finished: int | None = Field(
        default=None, ge=0, description="Seconds after which a finished training is deleted. Default: never."
    )
    active_deadline_seconds: float | None = Field(
        default=None, gt=0, description="Longest that the training may run, in seconds. Default: no limit."
    )
    backoff_limit: int = Field(default=3, ge=0, description="Restarts before the training has failed. Default: 3.")
    clean_pod_policy: CleanPodPolicy = Field(
        default=CleanPodPolicy.RUNNING, description="Pods removed when the training has finished. Default: Running."
    )
    managed_by: str = Field(
        default="paceline.dev/operator",
        description="Who runs this training; Paceline's operator leaves alone one with another name here. "
        "Default: paceline.dev/operator.",
    )
    start_timeout_seconds: float = Field(
        default=600, gt=0, description="Longest wait for all processes to have joined, in seconds. Default: 600."
    )


class TrainingSpec(Strict):
    """The `spec` of a DistributedTraining."""

    topology: Topology = Field(description="ParameterServer or AllReduce.")
    parameter_server: ParameterServer | None = Field(default=None, description="Only with topology ParameterServer.")
    all_reduce: AllReduce | None = Field(default=None, description="Only with topology AllReduce.")
    workers: Workers = Field(description="The workers.")
    gradients: Gradients = Field(default=Gradients(), description="How gradients travel.")
    checkpoint: Checkpoint | None = Field(default=None, description="Reserved; refused by this version.")
    observability: Observability = Field(default=Observability(), description="What is exported.")
    security: Security = Field(default=Security(), description="Protection of the wire.")
    run_policy: RunPolicy = Field(default=RunPolicy(), description="The life of the training.")

    @model_validator(mode="after")
    def _member_matches_topology(self) -> Self:
        members = {Topology.PARAMETER_SERVER: "parameterServer", Topology.ALL_REDUCE: "allReduce"}
        given = {"parameterServer": self.parameter_server, "allReduce": self.all_reduce}
        for topology, member in members.items():
            if given[member] is not None and topology is not self.topology:
                right = members[self.topology]
                raise ValueError(f"`{member}` is set but topology is {self.topology}: remove it, or use `{right}`")
        return self

    @property
    def world_size(self) -> int:
        """Worker processes of the whole training."""
        return self.workers.replicas * self.workers.processes

    @property
    def asynchronous(self) -> bool:
        """Whether gradients are applied as they arrive, so that a worker can be replaced while the others go on."""
        return self.topology is Topology.PARAMETER_SERVER and self.server.strategy is Strategy.ASYNCHRONOUS

    @property
    def server(self) -> ParameterServer:
        """The parameter-server settings in force, defaults included."""
        return self.parameter_server or ParameterServer()


class Metadata(Open):
    """Object metadata, as in Kubernetes."""

    name: str = Field(
        description="Name: lower-case letters, digits and dashes, a letter first, at most 48 characters (the names of "
        "pods and of a Service are made from it).",
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        max_length=48,
    )


class DistributedTraining(Strict):
    """One training."""

    api_version: Literal["paceline.dev/v1alpha1"] = Field(description="Always paceline.dev/v1alpha1.")
    kind: Literal["DistributedTraining"] = Field(description="Always DistributedTraining.")
    metadata: Metadata = Field(description="Object metadata; the name is required.")
    spec: TrainingSpec = Field(description="What to train, and how.")
    status: dict[str, Any] | None = Field(default=None, description="Written by the operator; ignored on input.")
