"""The first process of a pod: exit codes, signals, and one process for each GPU."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from paceline import entrypoint

MULTIPLE = {
    "PACELINE_ROLE": "worker",
    "PACELINE_ORDINAL": "1",
    "PACELINE_PROCESSES": "3",
    "PACELINE_METRICS": "0.0.0.0:9090",
    "PACELINE_GPUS": "3",
}


def start(*command: str, **environment: str) -> "subprocess.Popen[str]":
    whole = [sys.executable, "-m", "paceline.entrypoint", *command]
    pipe = subprocess.PIPE
    return subprocess.Popen(whole, env={**os.environ, **environment}, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
        ([], 2),
    ],
)
def test_the_exit_code_is_the_scripts(command: list[str], code: int) -> None:
    process = start(*command)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code, errors
    assert "Traceback" not in errors


def test_signals_are_forwarded() -> None:
    script = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    process = start("sh", "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "told\n"
    assert process.returncode == 3


def test_a_signal_that_comes_while_a_process_is_being_started_is_forwarded(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, before = subprocess.Popen, {n: signal.getsignal(n) for n in entrypoint.FORWARDED}

    def begin(*arguments: Any, **more: Any) -> Any:
        child = begun(*arguments, **more)
        os.kill(os.getpid(), signal.SIGTERM)
        return child

    monkeypatch.setattr(subprocess, "Popen", begin)
    try:
        assert entrypoint._run(["sleep", "60"], [{}]) == 128 + signal.SIGTERM
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_each_process_of_a_pod_has_a_rank_a_gpu_and_a_port() -> None:
    script = 'echo "$PACELINE_ORDINAL $LOCAL_RANK $CUDA_VISIBLE_DEVICES $PACELINE_METRICS"'
    output, errors = start("sh", "-c", script, **MULTIPLE).communicate(timeout=30)
    assert sorted(output.splitlines()) == ["3 0 0 0.0.0.0:9090", "4 1 1 0.0.0.0:9091", "5 2 2 0.0.0.0:9092"], errors


def test_the_first_that_fails_ends_the_others_and_gives_the_code() -> None:
    process = start("sh", "-c", '[ "$LOCAL_RANK" = 1 ] && exit 5; exec sleep 60', **MULTIPLE)
    process.communicate(timeout=30)
    assert process.returncode == 5
