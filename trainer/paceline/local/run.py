"""`paceline run`: prepare the folder, start the processes, watch them to the end, and write down what came of it.

The processes of a run that were killed are started again (paceline/local/restarts.py).
"""

import json
import os
import platform
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from paceline import json_text
from paceline.files import private_writing
from paceline.local.display import Display
from paceline.local.failures import own_failure, root_cause
from paceline.local.preflight import Request, check, cluster_only
from paceline.local.restarts import LOGS, RunHistory
from paceline.local.run_processes import Interrupts, RunProcesses
from paceline.manifest_redaction import masked
from paceline.views.sources import local_process
from paceline.views.sources.run_folders import MANIFEST
from paceline_core import limits
from paceline_core.errors import CheckpointDamaged, SpecError, StoreRefused, StoreUnreachable

ENDPOINTS = "endpoints.json"
TICK_SECONDS = 0.1
POLL_SECONDS = 0.5
STATUS_SECONDS = 5.0  # for server 0 to say whether a worker can be replaced alone
SETTLE_SECONDS = 1.5  # after the first failure, for others that failed by themselves
SERVER_END_SECONDS = 60.0  # after the last worker
EXIT = {"Succeeded": 0, "Failed": 1, "Interrupted": 130}
BAD_INPUT = 2
NEVER_JOINED = "ended without ever calling paceline.distribute(): add the call to the script"
NOT_TOLD = (
    "ended with exit code 0 before Paceline could tell that it is done: os._exit() and os.exec*() skip what Python "
    "does at the end of a script; let the script return, or end it with sys.exit()"
)


def run(request: Request, display: Display) -> int:
    """Run a training; gives the exit code. Raises SpecError when it cannot begin."""
    check(request)
    _make_folder(request)
    with private_writing.owner_only() as umask:
        return _run(request, display, umask)


def _run(request: Request, display: Display, umask: int) -> int:
    history, processes = RunHistory(request), RunProcesses(request, umask)
    display.start(_info(request, processes))
    ignored = cluster_only(request)
    if ignored:
        display.note(f"has no meaning on one machine: {', '.join(ignored)}")
    if request.working_folder != request.folders[0]:
        display.note(f"what is to be run is not here: the workers run in {request.working_folder}, beside the file")
    with Interrupts() as interrupts:
        while True:
            monitor = RunMonitor(history, processes, display, interrupts)
            try:
                _write_endpoints(history.request, processes)
                processes.start(display.line)
                monitor.until_end()
            except SpecError as error:  # found out by trying
                display.failure(own_failure("paceline", str(error)))
                return BAD_INPUT
            finally:
                processes.close()
            if not monitor.begin_anew():
                return monitor.conclude()
            processes = RunProcesses(history.request, umask, processes.ports)


class RunMonitor:
    """Follows one attempt of a run: polls its status, notices failures, interruptions and limits."""

    def __init__(self, history: RunHistory, processes: RunProcesses, display: Display, interrupts: Interrupts) -> None:
        self._history, self._request = history, history.request
        self._processes, self._display, self._interrupts = processes, display, interrupts
        self._status: dict[str, Any] | None = None
        self._polled = 0.0  # when the request for the last status was sent
        self._over = threading.Event()
        self._failure: dict[str, Any] | None = None
        self._not_finite: str | None = None  # a tensor of the weights
        self._said = ""  # why progress could not be shown

    def until_end(self) -> None:
        """Return when every process has ended or has been told to."""
        poller = threading.Thread(target=self._poll, name="status", daemon=True)
        poller.start()
        try:
            while not self._interrupts.count:
                if self._failed() or all(r.code() is not None for r in self._processes.replicas):
                    break
                time.sleep(TICK_SECONDS)
            if any(r.code() is None for r in self._processes.replicas):
                self._stop()
        finally:
            self._over.set()
            poller.join(POLL_SECONDS + 2)

    def _stop(self) -> None:
        """End the processes; of an interrupted run that saves, after a checkpoint."""
        saves = self._request.training.spec.checkpoint is not None
        if saves and self._interrupts.count:
            self._display.note("saving a checkpoint after the next update, before ending; Ctrl-C again ends at once")
        self._processes.stop(self._interrupts, saves)

    def begin_anew(self) -> bool:
        """Whether another attempt is to be made; then it is prepared."""
        if self._interrupts.count or not self._history.goes_on(self._failure):
            return False
        assert self._failure is not None, "nothing else is a reason"
        try:
            self._display.note(self._history.begin_anew(self._failure, self._last_status()))
        except OSError as error:
            self._failure = own_failure("paceline", f"{self._request.folder} cannot be written: {error}")
        except CheckpointDamaged as error:
            why = f"{self._failure['message']}; and no checkpoint is as it was written: {error}"
            self._failure = own_failure(self._failure["replica"], why)
        except (StoreUnreachable, StoreRefused) as error:
            why = f"{self._failure['message']}; and checkpoints cannot be read: {error}"
            self._failure = own_failure(self._failure["replica"], why)
        else:
            return True
        return False

    def conclude(self) -> int:
        """Write result.json, show the end, and give the exit code."""
        status = self._last_status()
        if status:
            self._show_progress(status)
        result, weights = self._outcome(), None
        if result != "Failed":
            try:
                weights, self._not_finite = _weights(self._request.folder)
            except OSError as error:
                result, self._failure = "Failed", own_failure("paceline", f"the weights were not written: {error}")
        if result == "Interrupted" and (how := self._history.how_to_go_on()):
            self._display.note(how)
        if self._failure and result == "Failed":
            self._display.failure(self._failure)
        summary = self._summary(result, status or {}, weights)
        try:
            (self._request.folder / "result.json").write_text(json_text.dumps(summary, indent=1) + "\n")
        except OSError as error:
            summary |= {"result": "Failed", "exit_code": EXIT["Failed"]}
            self._display.failure(own_failure("paceline", f"{self._request.folder} cannot be written: {error}"))
        self._display.result(summary)
        return int(summary["exit_code"])

    def _outcome(self) -> str:
        if self._interrupts.count:
            return "Interrupted"
        return "Failed" if self._failure else "Succeeded"

    def _failed(self) -> bool:
        """Whether something went wrong that ends this attempt; remembers what."""
        for replica in self._processes.replicas:
            if self._history.goes_on_alone(replica, self._processes.replicas, self._ask_status):
                self._display.note(self._history.replaced(replica))
                self._processes.start_again(replica, self._display.line)
        self._failure = self._failure or self._crash() or self._broken_rule()
        return self._failure is not None

    def _crash(self) -> dict[str, Any] | None:
        replicas = self._processes.replicas
        if not any(r.code() for r in replicas):
            return None
        settled = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < settled and not self._interrupts.count and any(r.code() is None for r in replicas):
            time.sleep(TICK_SECONDS)
        for replica in replicas:
            if replica.code():
                replica.drain(1)
        return root_cause(replicas)

    def _broken_rule(self) -> dict[str, Any] | None:
        replicas = self._processes.replicas
        for replica in replicas:
            if replica.log_problem:
                return own_failure("paceline", f"the log of {replica.name} cannot be written: {replica.log_problem}")
        limit = self._request.training.spec.run_policy.active_deadline_seconds
        if limit and self._history.seconds() > limit:
            text = f"the training took longer than spec.runPolicy.activeDeadlineSeconds, {limit:g} s"
            return own_failure("paceline", text)
        silent = self._ended_in_silence()
        if silent is not None:
            return self._failure_on_its_way() or silent
        return self._servers_linger()

    def _failure_on_its_way(self) -> dict[str, Any] | None:
        """The failure of another process, if one ends with it: a server answers others for some seconds before that."""
        limit = time.monotonic() + limits.REFUSAL_SECONDS + SETTLE_SECONDS
        replicas = self._processes.replicas
        while time.monotonic() < limit and not self._interrupts.count and not any(r.code() for r in replicas):
            time.sleep(TICK_SECONDS)
        return self._crash()

    def _ended_in_silence(self) -> dict[str, Any] | None:
        """A worker that has ended well, but was not done in what was asked for after its end."""
        for replica in self._processes.replicas:
            if not replica.is_worker or replica.code() != 0 or replica.ended is None or self._status is None:
                continue
            states = {w["worker"]: w["state"] for w in self._status["workers"]}
            state = states[replica.ordinal] if replica.ended < self._polled else "finished"
            if state != "finished":
                return own_failure(replica.name, NEVER_JOINED if state == "waiting" else NOT_TOLD)
        return None

    def _servers_linger(self) -> dict[str, Any] | None:
        ends = [
            r.ended for r in self._processes.replicas if r.is_worker and r.code() is not None and r.ended is not None
        ]
        workers = sum(r.is_worker for r in self._processes.replicas)
        if len(ends) == workers and time.monotonic() - max(ends) > SERVER_END_SECONDS:
            names = ", ".join(r.name for r in self._processes.replicas if r.code() is None)
            return own_failure(names, f"did not end within {SERVER_END_SECONDS:g} s after the last worker")
        return None

    def _poll(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            asked = time.monotonic()
            try:
                status = local_process.get(self._processes.status_url)
            except local_process.NoAnswer:
                continue  # not there yet, or gone already
            self._status, self._polled = status, asked
            self._show_progress(status)

    def _ask_status(self) -> dict[str, Any] | None:
        """What server 0 says now; None when a server has ended, or it does not answer for some seconds."""
        limit, servers = time.monotonic() + STATUS_SECONDS, [r for r in self._processes.replicas if not r.is_worker]
        while time.monotonic() < limit and not any(r.code() is not None for r in servers):
            try:
                found: dict[str, Any] = local_process.get(self._processes.status_url)
                return found
            except local_process.NoAnswer:
                time.sleep(TICK_SECONDS)
        return None

    def _show_progress(self, status: dict[str, Any]) -> None:
        """Whatever is wrong with showing: the run goes on, and its end is still seen."""
        try:
            self._display.progress(status)
        except Exception as error:
            if str(error) != self._said:
                self._said = str(error)
                self._display.note(f"the progress cannot be shown: {error!r}")

    def _last_status(self) -> dict[str, Any] | None:
        """What server 0 wrote at its end, or else what it last told."""
        try:
            found: dict[str, Any] = json.loads((self._request.folder / "status.json").read_text())
        except (OSError, ValueError):
            return self._status
        return found

    def _summary(self, result: str, status: dict[str, Any], weights: str | None) -> dict[str, Any]:
        request, resumed = self._request, self._history.first_request.resume
        workers = status.get("workers", [])
        return {
            "result": result,
            "exit_code": EXIT[result],
            "training": request.training.metadata.name,
            "topology": str(request.training.spec.topology),
            "strategy": request.training.spec.mode,
            "started": self._history.started.isoformat(timespec="seconds"),
            "duration_seconds": self._history.seconds(),
            "restarts": self._history.told(),
            "version": status.get("version", 0),
            "workers": workers,
            "verdict": status.get("overall_verdict"),
            "goodput": self._history.goodput(status.get("goodput")),
            "reported": next((w["reported"] for w in workers if w["worker"] == 0), {}),
            "weights_sha256": weights,
            "loss_not_finite": status.get("loss_not_finite"),
            "gradients_not_finite": status.get("gradients_not_finite") or {},
            "weights_not_finite": self._not_finite or status.get("weights_not_finite"),
            "error": self._failure if result == "Failed" else None,
            "replay_of": str(request.replay) if request.replay else None,
            "resumed_from": str(resumed) if resumed else None,
            "folder": str(request.folder),
            "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "torch": _installed("torch")},
        }


def _make_folder(request: Request) -> None:
    try:
        if request.folder.exists() and any(request.folder.iterdir()):
            raise SpecError([f"--run-dir {request.folder}: is not empty; choose another"])
        request.folder.mkdir(mode=private_writing.FOLDER, parents=True, exist_ok=True)
        (request.folder / LOGS).mkdir(mode=private_writing.FOLDER)
        private_writing.replace(request.folder / MANIFEST, masked(request.written).encode())
    except OSError as error:
        why = error.strerror or error
        raise SpecError([f"--run-dir {request.folder}: cannot be written: {why}"]) from None


def _info(request: Request, processes: RunProcesses) -> dict[str, Any]:
    spec, metrics = request.training.spec, processes.metrics()
    servers = f"{spec.server.replicas} servers" if spec.server.replicas > 1 else "1 server"
    if spec.ring:
        servers = "1 coordinator"
    workers = f"{spec.world_size} workers" if spec.world_size > 1 else "1 worker"
    return {
        "training": request.training.metadata.name,
        "summary": f"{spec.mode}, {servers}, {workers}, {spec.security.transport}",
        "folder": str(request.folder),
        "resumed_from": str(request.resume) if request.resume else None,
        "resumed_step": request.resumed_step,
        "status": processes.status_url,
        "metrics": metrics,
    }


def _write_endpoints(request: Request, processes: RunProcesses) -> None:
    """Where to ask the processes, for who looks at the run while it goes on."""
    endpoints = {"status": processes.status_url, "metrics": processes.metrics()}
    (request.folder / ENDPOINTS).write_text(json_text.dumps(endpoints, indent=1) + "\n")


def _weights(folder: Path) -> tuple[str | None, str | None]:
    """The weights' SHA-256 and, if there is one, the first tensor that is not finite."""
    if not (folder / "signature.json").exists() and not (folder / "weights.safetensors").exists():
        return None, None
    from paceline.merged_weights import merge  # late: it needs numpy

    return merge(folder)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
