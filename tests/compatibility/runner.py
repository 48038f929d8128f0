"""Runs a row in a mode: real servers in threads of the tests' process, workers in processes that are used again."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from paceline import merged_weights, weight_files
from paceline.server.coordinator import Coordinator
from paceline.server.service import ParameterService
from paceline_core.launch import Launch, Role
from paceline_core.spec import TrainingSpec
from tests.compatibility.table import Row
from tests.trainer.inprocess import end_at_once

ID, WORKERS, LIMIT_SECONDS = "5b" * 16, 2, 60
Weights = list[dict[str, torch.Tensor]]  # of each model


@dataclass
class Ran:
    """What came of a row in a mode."""

    answers: list[dict[str, Any]]
    of_workers: list[Weights]
    saved: Weights
    failure: str | None = None
    said: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """Of the workers and the server."""
        found = [a["error"] for a in self.answers if a["error"]]
        return found + ([self.failure] if self.failure else [])


class Host:
    """A process for scripts, started anew when it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def give(self, task: dict[str, Any]) -> None:
        """Hand it a script."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.compatibility.host"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What came of the script."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"error": "the process died", "result": None, "said": []}
        if found["error"]:
            self.close()
        return found

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()  # type: ignore[union-attr]
            self._process.wait(LIMIT_SECONDS)
            self._process.stdout.close()  # type: ignore[union-attr]
            self._process = None


class Hosts:
    """One process for scripts alone, and one for each worker."""

    def __init__(self) -> None:
        self._alone, self._workers = Host(), [Host() for _ in range(WORKERS)]

    def alone(self, row: Row, folder: Path) -> Ran:
        """The script by itself."""
        self._alone.give(_task(row, "alone", {}, folder, 0))
        answer = self._alone.answer()
        return Ran([answer], [_load(folder / "alone-0")], [])

    def together(self, row: Row, mode: str, folder: Path) -> Ran:
        """The script on two workers."""
        server = Server(row, mode, folder)
        for rank, host in enumerate(self._workers):
            host.give(_task(row, mode, server.worker(rank).to_environment(), folder, rank))
        answers = [host.answer() for host in self._workers]
        failure = server.end(failed=any(a["error"] for a in answers))
        saved = _saved(folder) if failure is None and not any(a["error"] for a in answers) else []
        said = [line for a in answers for line in a["said"]]
        return Ran(answers, [_load(folder / f"{mode}-{r}") for r in range(WORKERS)], saved, failure, said)

    def close(self) -> None:
        """End all."""
        for host in (self._alone, *self._workers):
            host.close()


class Server:
    """The parameter server or the coordinator of one row."""

    def __init__(self, row: Row, mode: str, folder: Path) -> None:
        self._spec, self._folder = _spec(row, mode), folder
        ring = mode == "AllReduce"
        self._launch = Launch(
            Role.COORDINATOR if ring else Role.SERVER, 0, "test", ID, self._spec, ("127.0.0.1:1",), output=str(folder)
        )
        self.service = Coordinator(self._launch) if ring else ParameterService(self._launch)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def worker(self, rank: int) -> Launch:
        """What a worker is told."""
        address = self.service.acceptor.address
        return Launch(Role.WORKER, rank, "test", ID, self._spec, (address,), output=str(self._folder))

    def end(self, failed: bool) -> str | None:
        """Wait for the end; why it failed, if it did."""
        if failed:
            end_at_once(self.service)
        self._thread.join(LIMIT_SECONDS)
        assert not self._thread.is_alive(), "the server does not end"
        return f"{type(self._failure).__name__}: {self._failure}" if self._failure and not failed else None

    def _run(self) -> None:
        try:
            self.service.run()
        except Exception as error:
            self._failure = error


def _task(row: Row, mode: str, environment: dict[str, str], folder: Path, rank: int) -> dict[str, Any]:
    place = folder / f"{mode}-{rank}"
    place.mkdir()
    leaves = row.pairs if mode == "Asynchronous" and rank > 0 else 0
    return {
        "mode": mode, "script": row.script, "environment": environment, "weights": str(place), "dtype": row.dtype,
        "leaves_after": leaves, "folder": str(place),
    }  # fmt: skip


def _spec(row: Row, mode: str) -> TrainingSpec:
    container = {"name": "trainer", "command": ["x"]}
    whole: dict[str, Any] = {
        "topology": "AllReduce" if mode == "AllReduce" else "ParameterServer",
        "workers": {"replicas": WORKERS, "template": {"spec": {"containers": [container]}}},
        "gradients": {"bucketMib": 0.001, "timeoutSeconds": 20, **row.spec.get("gradients", {})},
        "runPolicy": {"startTimeoutSeconds": 30},
        "security": {"transport": "Insecure"},
    }
    if mode != "AllReduce":
        whole["parameterServer"] = {"strategy": mode, **row.spec.get("parameterServer", {})}
    return TrainingSpec.model_validate(whole)


def _saved(folder: Path) -> Weights:
    merged_weights.merge(folder)
    found, number = [], 0
    while (folder / weight_files.file(number)).exists():
        found.append(load_file(folder / weight_files.file(number)))
        number += 1
    return found


def _load(folder: Path) -> Weights:
    files: Sequence[Path] = sorted(folder.glob("[0-9]*.safetensors"))
    return [load_file(file) for file in files]
