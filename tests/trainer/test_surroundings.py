"""What surrounds a run: a proxy, nohup, others that begin in the same moment, folders that cannot be written."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from paceline import cli
from paceline.local.run_processes import Interrupts
from paceline_core.errors import SpecError

from .conftest import Run, environment, manifest
from .test_runs import script


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(n) for n in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_nohup_holds(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.count == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.count == 1


def test_a_terminal_that_goes_ends_a_run_without_nohup(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.count == 1


def test_runs_that_begin_in_the_same_moment_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(40) as pool:
        folders = list(pool.map(lambda _: cli.new_folder("mine"), range(40)))
    assert len(set(folders)) == 40
    assert all(f.is_dir() and f.stat().st_mode & 0o777 == 0o700 for f in folders)


def test_a_run_that_is_refused_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(manifest(["no-such-program"])))
    assert cli.main(["run", "training.yaml"]) == cli.BAD_INPUT
    assert not list(tmp_path.glob("runs/*"))


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(SpecError, match=r"runs: cannot be written: .*; choose another place with --run-dir"):
        cli.new_folder("mine")


@pytest.mark.slow
def test_a_proxy_is_not_asked_for_this_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    outcome = run(script(60, 0.05), "-o", "json", workers=2)
    assert outcome.code == 0, outcome.output
    events = [json.loads(line) for line in outcome.output.splitlines() if line.startswith("{")]
    heard = [e for e in events if e["event"] == "progress"]
    assert not heard[0]["finished"], "asked for while it ran; the last one is read from status.json"
    assert [w["step"] for w in heard[-1]["workers"]] == [60, 60]


@pytest.mark.slow
def test_a_bare_environment_is_enough(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(textwrap.dedent(script(5, 0)))
    (tmp_path / "training.yaml").write_text(yaml.safe_dump(manifest([sys.executable, "train.py"])))
    bare = {"PYTHONPATH": path} if (path := environment().get("PYTHONPATH")) else {}
    command = [sys.executable, "-m", "paceline.cli", "run", "training.yaml"]
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("runs/*/weights.safetensors"))) == 1
