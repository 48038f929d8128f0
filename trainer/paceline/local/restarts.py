"""What is done when a process of a run is killed: another is started, alone or with all, from the newest checkpoint.

A script's own error ends the run: it would come again. Being killed by a signal, and losing a peer, may not.
"""

import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paceline.checkpoints import finding
from paceline.checkpoints.checkpoint_folder import FOLDER, Folder
from paceline.checkpoints.checkpoint_place import CheckpointPlace
from paceline.files import private_writing
from paceline.local.preflight import Request
from paceline.local.replica import SIGNALLED, Replica
from paceline.views.sources.run_folders import MANIFEST
from paceline_core.errors import PacelineError
from paceline_core.goodput import Loss
from paceline_core.state_machine import Knobs

LOGS = "logs"


@dataclass(frozen=True)
class Restart:
    """One restart, of a replica alone or of all."""

    replica: str
    message: str
    alone: bool
    step: int | None = None  # of the checkpoint that all went on from; None: from the beginning, or alone
    seconds: float = 0.0  # into the run


class RunHistory:
    """The attempts of a run. `request` is what the present one is to do."""

    def __init__(self, request: Request) -> None:
        self.request, self.began, self.restarts = request, time.monotonic(), list[Restart]()
        self.started = datetime.now(UTC)
        self.first_request = request
        self._attempt = 1
        self._spent: list[tuple[float, float, dict[str, float]]] = []  # seconds, productive, lost, of earlier attempts

    @property
    def limit(self) -> int:
        """How many restarts there may be."""
        return self.request.training.spec.run_policy.backoff_limit

    @property
    def replaces_alone(self) -> bool:
        """Whether a worker that was killed is started again while the others go on."""
        return self.request.training.spec.replaces_alone and self.limit > 0 and self.request.replay is None

    @property
    def _knobs(self) -> Knobs:
        return self.request.training.spec.knobs

    def seconds(self) -> float:
        """How long the run has lasted."""
        return time.monotonic() - self.began

    def goes_on_alone(
        self, replica: Replica, replicas: Sequence[Replica], ask_status: Callable[[], Mapping[str, Any] | None]
    ) -> bool:
        """Whether this one of them is to be started again while the others go on, or wait for it where it was."""
        alone = self.replaces_alone and replica.is_worker and killed(replica) and len(self.restarts) < self.limit
        if not alone or not self._knobs.replaced_where_it_was:
            return alone
        if self._knobs.held_by_workers and not any(it.is_worker and it.code() is None for it in replicas):
            return False
        workers = (ask_status() or {}).get("workers", ())
        return any(it["worker"] == replica.ordinal and it.get("kept_step") is not None for it in workers)

    def replaced(self, replica: Replica) -> str:
        """Count it; gives the words for it."""
        self.restarts.append(Restart(replica.name, replica.failure()["message"], True, None, self.seconds()))
        others = "wait for it" if self._knobs.waits_for_all else "go on"
        return f"{self._what()}. It is replaced ({self._count()}); the others {others}"

    def goes_on(self, failure: Mapping[str, Any] | None) -> bool:
        """Whether all are to be started again after this failure."""
        spec = self.request.training.spec
        return (
            failure is not None
            and bool(failure.get("restart"))
            and spec.checkpoint is not None
            and self.request.replay is None
            and len(self.restarts) < self.limit
        )

    def begin_anew(self, failure: Mapping[str, Any], status: Mapping[str, Any] | None) -> str:
        """Find what to go on from and set aside what the attempt wrote; gives the words for it.

        Raises OSError, CheckpointDamaged when there are checkpoints and none is as it was written, StoreUnreachable and
        StoreRefused.
        """
        found = finding.newest(checkpoints_of(self.request))
        self.request = self.first_request if found is None else replace(self.request, resume=found[0])
        wrong = found[2] if found else []
        step = self.request.resumed_step
        self.restarts.append(Restart(str(failure["replica"]), str(failure["message"]), False, step, self.seconds()))
        self._account(status, step or 0)
        set_aside(self.request.folder, self._attempt)
        self._attempt += 1
        begins = (
            "begins anew, for nothing was saved yet" if step is None else f"goes on from the checkpoint of step {step}"
        )
        passed_over = "".join(f"; passed over: {problem}" for problem in wrong)
        return f"{self._what()}. Everything {begins} ({self._count()}){passed_over}"

    def goodput(self, last: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The whole run's, from what server 0 told at the end of the last attempt and of those before."""
        if last is None:
            return None
        seconds, spent = self.seconds(), [*self._spent, (last["seconds"], last["productive"], dict(last["lost"]))]
        lost: dict[str, float] = {}
        for _, _, each in spent:
            for why, value in each.items():
                lost[why] = lost.get(why, 0.0) + value
        rest = max(0.0, seconds - sum(it for it, _, _ in spent))  # before the first step told, or after the last
        why = Loss.RESTART if self._spent else Loss.SHUTDOWN
        lost[why] = lost.get(why, 0.0) + rest
        return {
            "seconds": sum(it for it, _, _ in spent) + rest,
            "productive": sum(p for _, p, _ in spent),
            "lost": lost,
        }

    def how_to_go_on(self) -> str | None:
        """What a run that was interrupted has saved, and the command that goes on from it."""
        if self.request.training.spec.checkpoint is None:
            return None
        root = checkpoints_of(self.request)
        try:
            found = root.complete()
        except (OSError, PacelineError) as error:  # of a store that does not answer
            return f"what was saved is not known: {error}"
        if not found:
            return "no checkpoint was saved"
        run = self.request.folder if self.request.training.spec.checkpoint.to is None else root
        command = shlex.join(["paceline", "run", str(self.request.file), "--resume", str(run)])
        return f"saved: step {int(found[0].name.partition('-')[2])}; to go on: {command}"

    def told(self) -> list[dict[str, Any]]:
        """The restarts, as result.json has them."""
        return [asdict(it) for it in self.restarts]

    def _what(self) -> str:
        return f"{self.restarts[-1].replica}: {self.restarts[-1].message}"

    def _count(self) -> str:
        return f"restart {len(self.restarts)} of {self.limit}"

    def _account(self, status: Mapping[str, Any] | None, kept: int) -> None:
        """Steps that were made after the checkpoint have to be made again."""
        goodput = (status or {}).get("goodput")
        if not goodput:
            return
        began, reached = self.first_step(), int((status or {}).get("version", 0))
        part = min(1.0, max(0.0, (kept - began) / (reached - began))) if reached > began else 0.0
        lost = dict(goodput["lost"])
        lost[Loss.REWORK] = lost.get(Loss.REWORK, 0.0) + goodput["productive"] * (1 - part)
        self._spent.append((goodput["seconds"], goodput["productive"] * part, lost))

    def first_step(self) -> int:
        """The step at which the attempt before the newest began."""
        whole = [it for it in self.restarts[:-1] if not it.alone]
        return (whole[-1].step if whole else self.first_request.resumed_step) or 0


def killed(replica: Replica) -> bool:
    """Whether a process was ended by a signal that was not ours."""
    code = replica.code() or 0
    signalled = code < 0 or SIGNALLED < code <= SIGNALLED + signal.SIGRTMAX
    return signalled and not replica.stopped_by_us


def checkpoints_of(request: Request) -> CheckpointPlace:
    """Where a run saves its checkpoints."""
    asked = request.training.spec.checkpoint
    if asked is not None and asked.to is not None:
        return finding.place_of(asked.to).inside(request.training.metadata.name)
    return Folder(request.folder / FOLDER)


def set_aside(folder: Path, attempt: int) -> None:
    """Move what an attempt wrote into a folder of its own. Raises OSError."""
    place = folder / f"attempt-{attempt}"
    place.mkdir(mode=private_writing.FOLDER)
    for path in folder.iterdir():
        if path.name not in (MANIFEST, FOLDER) and not path.name.startswith("attempt-"):
            os.replace(path, place / path.name)
    shutil.copyfile(folder / MANIFEST, place / MANIFEST)
    (folder / LOGS).mkdir(mode=private_writing.FOLDER)
