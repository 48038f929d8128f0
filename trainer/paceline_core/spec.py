"""The resource `DistributedTraining`, as frozen models: the single source of validation, documentation and the CRD."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, create_model, model_validator

from paceline_core.checkpoint_policy import Checkpoint
from paceline_core.pod_template import TRAINER_CONTAINER, PodTemplate, gpus, training_part, trains
from paceline_core.resource import LONGEST_SECONDS, Open, Strict
from paceline_core.run_policy import RunPolicy
from paceline_core.state_machine import Knobs
from paceline_core.strategies import DEFAULT, STRATEGIES

API_VERSION = "paceline.dev/v1alpha1"
KIND = "DistributedTraining"
NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
OPTIMIZER_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


if TYPE_CHECKING:
    StrategyName = str
else:
    StrategyName = Literal[tuple(STRATEGIES)]


class Topology(StrEnum):
    """Where the parameters live."""

    PARAMETER_SERVER = "ParameterServer"
    ALL_REDUCE = "AllReduce"


MEMBERS = {Topology.PARAMETER_SERVER: "parameterServer", Topology.ALL_REDUCE: "allReduce"}  # the field of each
SERVERS_FIELD = MEMBERS[Topology.PARAMETER_SERVER]


def is_ring(topology: object) -> bool:
    """Whether workers average gradients among themselves, in a topology of this name."""
    return topology == Topology.ALL_REDUCE


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


class OnNonFinite(StrEnum):
    """What becomes of a training whose gradients, loss or weights are not finite."""

    SKIP = "Skip"
    FAIL = "Fail"
    REPORT = "Report"

    @property
    def checks_gradients(self) -> bool:
        """Whether an update of a gradient that is not finite is left out."""
        return self is not OnNonFinite.REPORT


class _Strategy(Strict):
    """Which update strategy the servers follow; beside it each strategy of the table has a field for its settings."""

    replicas: int = Field(default=1, ge=1, le=64, description="Server processes; each holds a shard. Default: 1.")
    strategy: StrategyName = Field(
        default=DEFAULT.name,
        description="; ".join(f"{s.name} {s.summary}" for s in STRATEGIES.values()) + f". Default: {DEFAULT.name}.",
    )


if TYPE_CHECKING:
    _StrategySettings = _Strategy
else:
    _StrategySettings = create_model(
        "_StrategySettings",
        __base__=_Strategy,
        **{
            s.member: (s.settings | None, Field(default=None, description=f"Only with strategy {s.name}."))
            for s in STRATEGIES.values()
            if s.settings is not None
        },
    )


class ParameterServer(_StrategySettings):
    """Servers that hold the parameters and update them."""

    optimizers: tuple[Annotated[str, Field(pattern=OPTIMIZER_PATTERN)], ...] = Field(
        default=(),
        max_length=32,
        description="Optimizers of your own that the servers may import and run, each as `module:Class`; they must "
        "treat each element of a parameter by itself. Default: none but torch.optim's.",
    )
    template: PodTemplate | None = Field(default=None, description="Pod template of the servers. Default: generated.")

    @model_validator(mode="after")
    def _settings_match_strategy(self) -> Self:
        for other in STRATEGIES.values():
            if other.name != self.strategy and other.settings is not None and getattr(self, other.member) is not None:
                raise ValueError(
                    f"`{other.field}` is set but strategy is {self.strategy}: remove it, or set {other.name}"
                )
        return self

    def problem(self, world_size: int) -> str | None:
        """Why the strategy cannot run with so many workers, and what to do; None when it can."""
        chosen = STRATEGIES[self.strategy]
        return chosen.problem(self._settings, world_size)

    def knobs(self, world_size: int) -> Knobs:
        """What the strategy does, with its settings in force."""
        return STRATEGIES[self.strategy].knobs(self._settings, world_size)

    @property
    def _settings(self) -> Strict | None:
        chosen = STRATEGIES[self.strategy]
        if chosen.settings is None:
            return None
        given: Strict | None = getattr(self, chosen.member)
        return given or chosen.settings()


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
    template: Annotated[PodTemplate, AfterValidator(trains)] = Field(
        description="Pod template; its container `trainer` runs the training script."
    )

    @property
    def gpus(self) -> int:
        """GPUs of each replica: what the limits of container `trainer` ask for."""
        container = next(c for c in self.template.spec.containers if c.name == TRAINER_CONTAINER)
        return gpus(container)

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
    max_norm: float | None = Field(
        default=None,
        gt=0,
        description="Greatest norm of the mean gradient: a greater one is scaled down to it before the update, in "
        "every topology alike, as torch.nn.utils.clip_grad_norm_ does in one process. Default: none.",
    )
    on_non_finite: OnNonFinite = Field(
        default=OnNonFinite.SKIP,
        description="When a gradient's norm is not finite (NaN or infinite): Skip leaves out the update on every "
        "worker alike, names the worker, and ends the training as failed after 100 in a row; Fail ends it at the "
        "first; Report applies it as PyTorch alone does. A loss that the script reports, or weights at the end, that "
        "are not finite, are shown wherever the training is, and Fail ends it as failed. Default: Skip.",
    )
    timeout_seconds: float = Field(
        default=600,
        gt=0,
        le=LONGEST_SECONDS,
        description="Longest that a process waits for another, in seconds. Default: 600.",
    )


class Observability(Strict):
    """What is measured and exported."""

    level: Level = Field(default=Level.AUTO, description="How many series to export. Default: Auto.")


class Security(Strict):
    """Protection of the wire."""

    transport: Transport = Field(
        default=Transport.TLS, description="TLS 1.3 with a certificate for each replica, or Insecure. Default: TLS."
    )


class TrainingSpec(Strict):
    """The `spec` of a DistributedTraining."""

    topology: Topology = Field(description="ParameterServer or AllReduce.")
    parameter_server: ParameterServer | None = Field(default=None, description="Only with topology ParameterServer.")
    all_reduce: AllReduce | None = Field(default=None, description="Only with topology AllReduce.")
    workers: Workers = Field(description="The workers.")
    gradients: Gradients = Field(default=Gradients(), description="How gradients travel.")
    checkpoint: Checkpoint | None = Field(
        default=None, description="Saving what the training can go on from. Default: none."
    )
    observability: Observability = Field(default=Observability(), description="What is exported.")
    security: Security = Field(default=Security(), description="Protection of the wire.")
    run_policy: RunPolicy = Field(default=RunPolicy(), description="The life of the training.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = {Topology.PARAMETER_SERVER: self.parameter_server, Topology.ALL_REDUCE: self.all_reduce}
        wrong = [
            f"`{member}` is set but topology is {self.topology}: remove it, or use `{self.member}`"
            for topology, member in MEMBERS.items()
            if given[topology] is not None and topology is not self.topology
        ]
        problem = None if self.ring else self.server.problem(self.world_size)
        if problem is not None:
            wrong.append(problem)
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def without_templates(self) -> Self:
        """What a process of the training needs of it: of the pod templates only how many GPUs a worker has."""
        server = {name: given.model_copy(update={"template": None}) for name, given in self._members() if given}
        workers = self.workers.model_copy(update={"template": training_part(self.workers.template)})
        return self.model_copy(update={**server, "workers": workers})

    def _members(self) -> tuple[tuple[str, ParameterServer | AllReduce | None], ...]:
        return ("parameter_server", self.parameter_server), ("all_reduce", self.all_reduce)

    @property
    def world_size(self) -> int:
        """Worker processes of the whole training."""
        return self.workers.replicas * self.workers.processes

    @property
    def ring(self) -> bool:
        """Whether workers average gradients among themselves; beside them is a coordinator instead of servers."""
        return is_ring(self.topology)

    @property
    def member(self) -> str:
        """The field that speaks of the servers, or of the coordinator."""
        return MEMBERS[self.topology]

    @property
    def mode(self) -> str:
        """How this training updates, in a word: the strategy of its servers, or else the topology."""
        return str(self.topology) if self.ring else self.server.strategy

    @property
    def knobs(self) -> Knobs:
        """What this way to update does. In a ring every update is the mean of all workers.

        With `replaces_alone` a ring is made anew where it broke. It is not used yet: scripts are known whose weights
        would be others (several steps for a batch, weights changed before a step, GradScaler's skipped steps).
        """
        return Knobs(held_by_workers=True) if self.ring else self.server.knobs(self.world_size)

    @property
    def replaces_alone(self) -> bool:
        """Whether a lost worker alone is started again.

        One that goes on where it was needs a script that can go on from a checkpoint: of that `checkpoint` is the sign.
        """
        knobs = self.knobs
        return knobs.replaces_alone and (self.checkpoint is not None or not knobs.replaced_where_it_was)

    @property
    def server(self) -> ParameterServer:
        """The parameter-server settings in force, defaults included."""
        return self.parameter_server or ParameterServer()


class Metadata(Open):
    """Object metadata, as in Kubernetes."""

    name: str = Field(
        description="Name: lower-case letters, digits and dashes, a letter first, at most 48 characters (the names of "
        "pods and of a Service are made from it).",
        pattern=NAME_PATTERN,
        max_length=48,
    )


class DistributedTraining(Strict):
    """One training."""

    api_version: Literal["paceline.dev/v1alpha1"] = Field(description="Always paceline.dev/v1alpha1.")
    kind: Literal["DistributedTraining"] = Field(description="Always DistributedTraining.")
    metadata: Metadata = Field(description="Object metadata; the name is required.")
    spec: TrainingSpec = Field(description="What to train, and how.")
    status: dict[str, Any] | None = Field(default=None, description="Written by the operator; ignored on input.")
