"""Real runs of `paceline run` on scripts written for a test."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import s3

Run = Callable[..., "Outcome"]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would the runs


@dataclass
class Outcome:
    """What came of `paceline run`."""

    code: int
    output: str
    folder: Path

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())


def manifest(
    command: list[str], strategy: str = "Synchronous", workers: int = 2, servers: int = 1, **spec: Any
) -> dict[str, Any]:
    container = {"name": "trainer", "command": command}
    whole: dict[str, Any] = {
        "topology": "ParameterServer",
        "parameterServer": {"replicas": servers, "strategy": strategy},
        "workers": {"replicas": workers, "template": {"spec": {"containers": [container]}}},
        "gradients": {"timeoutSeconds": 30},
        "runPolicy": {"startTimeoutSeconds": 60, "activeDeadlineSeconds": 100},
    }
    if strategy == "AllReduce":
        whole["topology"] = "AllReduce"
        del whole["parameterServer"]
    return {
        "apiVersion": "paceline.dev/v1alpha1",
        "kind": "DistributedTraining",
        "metadata": {"name": "test"},
        "spec": whole | spec,
    }


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def command(file: Path, folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-P", "-m", "paceline.cli", "run", str(file), "--run-dir", str(folder), *arguments]


def write(tmp_path: Path, script: str, asked: dict[str, Any]) -> Path:
    (tmp_path / "train.py").write_text(textwrap.dedent(script))
    file = tmp_path / "training.yaml"
    file.write_text(yaml.safe_dump(asked))
    return file


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run a script under a manifest: run(script, strategy=..., workers=..., arguments=[...])."""
    count = 0

    def go(script: str, *arguments: str, name: str = "run", **asked: Any) -> Outcome:
        nonlocal count
        count += 1
        folder = tmp_path / f"{name}-{count}"
        file = write(tmp_path, script, manifest(["python", "train.py"], **asked))
        done = subprocess.run(
            command(file, folder, *arguments),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=110,
        )
        return Outcome(done.returncode, done.stdout, folder)

    return go


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3Server]:
    """A real S3 server on this machine."""
    if not s3.PROGRAM.exists():
        pytest.skip(s3.NONE_HERE)
    with s3.running(tmp_path_factory.mktemp("s3")) as server:
        yield server
