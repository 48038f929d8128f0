"""Pod templates, as far as Paceline reads them; the rest passes through to Kubernetes."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from paceline_core.resource import LONGEST_SECONDS, Open

TRAINER_CONTAINER = "trainer"
GRACE_SECONDS = 30.0  # from SIGTERM to SIGKILL, of a pod that says nothing
MOST_GPUS = 64  # of a replica: one process for each
VARIABLE = r"^[ -<>-~]+$"  # a name as Kubernetes takes it: printable ASCII without `=`
NO_NUL = r"^[^\x00]*$"  # where the system ends a text
MOST_BYTES = 131_071  # of a text that Linux hands to a program: an argument, or a variable with its name and `=`


def _handed(text: str) -> str:
    if len(text.encode(errors="surrogatepass")) > MOST_BYTES:
        raise ValueError(
            f"is longer than {MOST_BYTES:,} bytes, the most that Linux hands to a program: put it in a file"
        )
    return text


Text = Annotated[str, Field(pattern=NO_NUL), AfterValidator(_handed)]


class EnvVar(Open):
    """One environment variable of a container."""

    name: str = Field(description="Name of the variable: printable ASCII without `=`.", pattern=VARIABLE)
    value: Text = Field(default="", description="Its value. Default: empty.")

    @model_validator(mode="after")
    def _is_handed(self) -> Self:
        _handed(f"{self.name}={self.value}")
        return self


class Container(Open):
    """One container of a pod template; every other field of a Kubernetes container is passed through."""

    name: str = Field(description="Name of the container; the one named `trainer` runs the training script.")
    image: str | None = Field(default=None, description="Image to run; ignored by `paceline run`.")
    command: tuple[Text, ...] = Field(default=(), description="Program and first arguments, not run in a shell.")
    args: tuple[Text, ...] = Field(default=(), description="Further arguments.")
    env: tuple[EnvVar, ...] = Field(default=(), description="Environment variables.")
    working_dir: Text | None = Field(
        default=None, description="Folder to run in. Default: the image's, or the current."
    )


class PodSpec(Open):
    """The `spec` of a pod template."""

    containers: tuple[Container, ...] = Field(description="Containers of the pod.", min_length=1)
    termination_grace_period_seconds: int | None = Field(
        default=None,
        ge=0,
        le=int(LONGEST_SECONDS),
        description="Seconds from SIGTERM to SIGKILL, in which a training that saves checkpoints saves one more. "
        "Servers have the workers' if their own template says nothing. Default: 30, as in Kubernetes.",
    )

    @property
    def grace_seconds(self) -> float:
        """From SIGTERM to SIGKILL."""
        asked = self.termination_grace_period_seconds
        return GRACE_SECONDS if asked is None else float(asked)


class PodTemplate(Open):
    """A Kubernetes PodTemplateSpec."""

    metadata: dict[str, Any] = Field(default_factory=dict, description="Labels and annotations for the pods.")
    spec: PodSpec = Field(description="The pod's specification, as in Kubernetes.")


def trains(template: PodTemplate) -> PodTemplate:
    """The template, if it can run a training. Raises ValueError with everything that is wrong."""
    wrong = [*_command_problems(template), *_gpu_problems(template)]
    if wrong:
        raise ValueError("; ".join(wrong))
    return template


def training_part(template: PodTemplate) -> PodTemplate:
    """The container that trains with its program and its GPUs: what is left can be handed to a process."""
    container = next(c for c in template.spec.containers if c.name == TRAINER_CONTAINER)
    limits = {"resources": {"limits": {name: str(count) for name, count in _gpu_limits(container)}}}
    kept = {"name": container.name, "command": container.command[:1], **(limits if _gpu_limits(container) else {})}
    return PodTemplate.model_validate({"spec": {"containers": [kept]}})


def _command_problems(template: PodTemplate) -> Iterator[str]:
    named = [c for c in template.spec.containers if c.name == TRAINER_CONTAINER]
    if len(named) != 1:
        names = ", ".join(c.name for c in template.spec.containers)
        yield f"needs exactly one container named `{TRAINER_CONTAINER}`; found: {names}"
    elif not named[0].command:
        yield f"container `{TRAINER_CONTAINER}` needs a command, for example [python, train.py]"


def _gpu_problems(template: PodTemplate) -> Iterator[str]:
    """Limits must be of whole GPUs, and of no more than a machine can have."""
    for container in template.spec.containers:
        try:
            odd = [each for each in _gpu_limits(container) if not re.fullmatch(r"[0-9]{1,9}", str(each[1]))]
        except ValueError as error:
            yield str(error)
            continue
        yield from (
            f"container `{container.name}`: limit {name} is {count!r}, and must be a whole number"
            for name, count in odd
        )
        if not odd and gpus(container) > MOST_GPUS:
            yield f"container `{container.name}`: its limits are of {gpus(container)} GPUs, the most are {MOST_GPUS}"


def gpus(container: Container) -> int:
    """GPUs that the limits of a container ask for."""
    return sum(int(str(count)) for _, count in _gpu_limits(container))


def _gpu_limits(container: Container) -> list[tuple[str, Any]]:
    """What the limits of a container say of GPUs. Raises ValueError when they are not what Kubernetes takes."""
    found: Any = container.model_extra or {}
    for field in ("resources", "limits"):
        found = found.get(field) or {}
        if not isinstance(found, dict):
            raise ValueError(f"container `{container.name}`: {field} is {found!r:.60}, and must be a mapping")
    return [(str(name), count) for name, count in found.items() if str(name).endswith("/gpu")]
