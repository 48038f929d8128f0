"""What is to be run, and every reason not to begin that can be known before."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path

from paceline import manifest
from paceline.checkpoints import checkpoint_manifest, finding
from paceline.checkpoints.checkpoint_folder import Folder
from paceline.checkpoints.checkpoint_place import CheckpointPlace
from paceline.files import bounded_reading
from paceline.manifest_redaction import HIDDEN, masked
from paceline.server.gradients.sequencer import read_arrivals
from paceline.views.sources.run_folders import MANIFEST, Run
from paceline_core import modes
from paceline_core.checkpoint_policy import Resume
from paceline_core.errors import PacelineError, ReplayError, SpecError
from paceline_core.launch import Role, Slowdown
from paceline_core.pod_template import TRAINER_CONTAINER, Container
from paceline_core.spec import DistributedTraining, TrainingSpec

ARRIVALS = "arrivals-ps-0.csv"
FIRST_ENTRIES = 10_000  # of the arrivals, looked at before anything starts; the server reads the rest


@dataclass(frozen=True)
class Request:
    """One `paceline run`."""

    file: Path
    written: str  # what the file says
    training: DistributedTraining
    folder: Path
    replay: Path | None = None
    resume: CheckpointPlace | None = None  # the checkpoint to go on from
    slow: dict[int, str] = field(default_factory=dict)  # worker -> slowdown
    port: int = 0  # first port of the servers; 0: any
    metrics_port: int = 0  # first port for metrics; 0: any

    @property
    def container(self) -> Container:
        """The container whose command each worker runs."""
        containers = self.training.spec.workers.template.spec.containers
        return next(c for c in containers if c.name == TRAINER_CONTAINER)

    @property
    def resumed_step(self) -> int | None:
        """The step of the checkpoint to go on from. Raises CheckpointDamaged."""
        found = self.resume.manifest() if self.resume else None
        return found.step if found else None

    @property
    def command(self) -> list[str]:
        """Program and arguments."""
        return [*self.container.command, *self.container.args]

    @property
    def variables(self) -> dict[str, str]:
        """What the file sets in the workers' environment; a value that only a cluster knows is left out."""
        return {v.name: v.value for v in self.container.env if v.name not in self.unknown_variables}

    @property
    def unknown_variables(self) -> list[str]:
        """Names of the variables whose values a cluster would look up."""
        return [v.name for v in self.container.env if "valueFrom" in (v.model_extra or {})]

    @property
    def folders(self) -> list[Path]:
        """Where the workers may run: here, or else beside the file."""
        places = [Path(), self.file.parent] if self.file.is_file() else [Path()]
        return [place.joinpath(self.container.working_dir or ".").resolve() for place in places]

    @property
    def working_folder(self) -> Path:
        """Where the workers run: the first folder in which there is what they shall run."""
        return next((f for f in self.folders if not _command_problems(self, f)), self.folders[0])


def check(request: Request) -> None:
    """Raise SpecError with everything that keeps the training from beginning."""
    spec, wrong = request.training.spec, []
    if spec.run_policy.suspend:
        wrong.append("spec.runPolicy.suspend: the training is suspended; set it to false to run it")
    wrong += [
        f"env: the value of {name} was left out of this copy of a manifest: set it, or run the original"
        for name, value in request.variables.items()
        if value == HIDDEN
    ]
    folder, *others = request.folders
    if request.working_folder == folder:
        elsewhere = [f", nor beside the file in {other}" for other in others if other != folder]
        wrong += [problem + "".join(elsewhere) for problem in _command_problems(request, folder)]
    for worker in request.slow:
        if worker >= spec.world_size:
            wrong.append(f"--slow worker-{worker}: there are only {spec.world_size} workers, from worker-0")
    if request.replay is not None:
        wrong += _replay_problems(request, request.replay)
    wrong += _checkpoint_problems(request)
    if wrong:
        raise SpecError([f"{request.file}: {text}" for text in wrong])


def cluster_only(request: Request) -> list[str]:
    """Fields that are set but mean nothing on one machine."""
    spec, out = request.training.spec, []
    policy = spec.run_policy.model_fields_set
    for name, field_name in (
        *([] if spec.checkpoint or spec.replaces_alone else [("backoff_limit", "backoffLimit")]),
        ("ttl_seconds_after_finished", "ttlSecondsAfterFinished"),
        ("clean_pod_policy", "cleanPodPolicy"),
    ):
        if name in policy:
            out.append(f"spec.runPolicy.{field_name}")
    if spec.server.template is not None:
        out.append("spec.parameterServer.template")
    if len(spec.workers.template.spec.containers) > 1:
        out.append("further containers of spec.workers.template")
    if request.unknown_variables:
        out.append(f"valueFrom of the variables {', '.join(request.unknown_variables)}")
    return out


def earlier_checkpoints(training: DistributedTraining) -> CheckpointPlace | None:
    """The place whose newest checkpoint the training goes on from by itself; None when it begins at its beginning."""
    asked = training.spec.checkpoint
    if asked is None or asked.to is None or asked.resume is not Resume.AUTO:
        return None
    place = finding.place_of(asked.to).inside(training.metadata.name)
    return place if place.complete() else None


def parse_slow(texts: Sequence[str]) -> dict[int, str]:
    """Read `worker-2=30ms`. Raises SpecError."""
    slow = {}
    for text in texts:
        name, _, amount = text.partition("=")
        number = name.removeprefix(f"{Role.WORKER}-")
        if name == number or not number.isdigit():
            raise SpecError([f"--slow {text}: write the worker's name and a slowdown, as in worker-2=30ms"])
        try:
            Slowdown.parse(amount)
        except ValueError as error:
            raise SpecError([f"--slow {text}: {error}"]) from None
        slow[int(number)] = amount
    return slow


def search_path() -> str:
    """PATH for the workers: this environment's programs first, so that `python` is the one that has Paceline."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _command_problems(request: Request, folder: Path) -> list[str]:
    where, command = "spec.workers.template.spec.containers: trainer", request.command
    if not folder.is_dir():
        return [f"{where}: workingDir {folder} does not exist"]
    problem = _program_problem(command[0], folder, request.variables.get("PATH", search_path()))
    if problem is not None:
        return [f"{where}: {problem}"]
    if not Path(command[0]).name.startswith("python"):
        return []
    arguments = command[1:]
    while arguments and arguments[0].startswith("-") and arguments[0] not in ("-m", "-c"):
        arguments = arguments[1:]
    if arguments[:1] == ["-m"] and len(arguments) > 1 and not _has_module(arguments[1], folder):
        return [f"{where}: there is no module {arguments[1]!r}"]
    if arguments and not arguments[0].startswith("-") and not (folder / arguments[0]).is_file():
        return [f"{where}: there is no script {arguments[0]!r} in {folder}"]
    return []


def _without_secrets(written: str, path: Path) -> TrainingSpec:
    """The specification as the copy in a run folder has it. Raises SpecError."""
    manifest.one(written, path)  # what is wrong is told with the file's own lines
    return manifest.one(masked(written), path).spec


def _program_problem(name: str, folder: Path, path: str) -> str | None:
    """Why a program is not found, or may not be executed, in the places where the system looks: as `execvpe` does."""
    places = [folder / name] if "/" in name else [folder / each / name for each in path.split(os.pathsep)]
    if any(p.is_file() and os.access(p, os.X_OK) for p in places):
        return None
    found = next((p for p in places if p.exists()), None)
    if found is None:
        hint = f" on PATH; for the one in the folder write './{name}'" if (folder / name).is_file() else ""
        return f"there is no program {name!r}{hint}"
    if found.is_dir():
        return f"{name!r} is a folder"
    return f"{name!r} may not be executed: chmod +x it, or write what runs it before it, as in [sh, {name}]"


def _has_module(name: str, folder: Path) -> bool:
    """Whether `python -m name` would find it, without importing anything."""
    path: list[str] | None = [str(folder), *sys.path]
    for part in name.split("."):
        spec = PathFinder.find_spec(part, path)
        if spec is None:
            return False
        path = list(spec.submodule_search_locations or [])
    return True


def _checkpoint_problems(request: Request) -> list[str]:
    spec, wrong = request.training.spec, []
    if request.resume is not None:
        wrong += _resume_problems(request, request.resume)
    if spec.checkpoint is not None and spec.checkpoint.to is not None:
        place = finding.place_of(spec.checkpoint.to).inside(request.training.metadata.name)
        wrong += _place_problems(place, own=request.resume is not None)
    return wrong


def _place_problems(place: CheckpointPlace, own: bool) -> list[str]:
    """What keeps a run from saving there; `own`: the checkpoints that are there are its own."""
    if isinstance(place, Folder):
        there = next(path for path in (place.path, *place.path.parents) if os.path.exists(path))
        if not (own or os.path.isdir(there)):
            return [f"spec.checkpoint.to: {there} is not a folder"]
    try:
        place.demand_usable()
        found = () if own else place.complete()
    except OSError as error:
        return [f"spec.checkpoint.to: {place} cannot be read: {error.strerror}"]
    except PacelineError as error:
        return [f"spec.checkpoint.to: {error}"]
    if not found:
        return []
    return [
        f"spec.checkpoint.to: {place} has checkpoints of another run: go on from them (--resume {place}, or "
        "spec.checkpoint.resume: Auto), or choose another folder"
    ]


def _resume_problems(request: Request, checkpoint: CheckpointPlace) -> list[str]:
    wrong = []
    if request.replay is not None:
        wrong.append("--resume: a replay follows a whole run from its beginning; leave out one of the two")
    found = checkpoint.manifest()
    workers = request.training.spec.world_size
    if found is not None and found.workers != workers:
        wrong.append(f"--resume {checkpoint}: {checkpoint_manifest.another_number(found.workers, workers)}")
    return wrong


def _replay_problems(request: Request, run: Path) -> list[str]:
    spec = request.training.spec
    if not spec.knobs.order_matters:
        those = " and ".join(modes.names(lambda it: it.knobs.order_matters))
        return [f"--replay: only {those} runs need it; the others give the same weights each time"]
    if not (run / ARRIVALS).is_file() or not (run / MANIFEST).is_file():
        return [f"--replay {run}: is not the folder of a run (it has no {ARRIVALS} or no {MANIFEST})"]
    recorded = manifest.decoded(bounded_reading.whole(run, MANIFEST, manifest.MOST_BYTES) or b"", run / MANIFEST)
    if _without_secrets(recorded, run / MANIFEST) != _without_secrets(request.written, request.file):
        return [f"--replay {run}: was made with another specification (compare {run / MANIFEST})"]
    result = Run(run).result()
    if result is None or result.result != "Succeeded":
        return [f"--replay {run}: did not succeed, so there is no whole run to follow"]
    if result.resumed_from is not None:
        return [f"--replay {run}: went on from {result.resumed_from}, so its order is not that of a whole run"]
    try:
        read_arrivals(run / ARRIVALS, FIRST_ENTRIES)
    except ReplayError as error:
        return [f"--replay {run}: {error}"]
    return []
