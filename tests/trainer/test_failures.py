"""Bad input and failing scripts: the exit code, and what is said."""

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Run, command, environment, manifest, write

SCRIPT = """
import torch, paceline
torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
#SETUP
model, optimizer = paceline.distribute(model, optimizer)
#AFTER
for step in range(30):
    #STEP
    optimizer.zero_grad()
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
"""


def with_line(mark: str, line: str) -> str:
    return SCRIPT.replace(f"#{mark}", line)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise RuntimeError('broken at import')", "RuntimeError: broken at import"),
        (with_line("STEP", "if step == 10: raise KeyError('at ten')"), "KeyError: 'at ten'"),
        (with_line("STEP", "if paceline.rank() == 1 and step == 3: raise ValueError('only me')"), "worker-1: ValueError: only me"),
        (with_line("STEP", "if paceline.rank() == 1 and step == 3: import os; os.kill(os.getpid(), 9)"), "worker-1: was ended by signal SIGKILL"),
        ("import time; print('hello'); time.sleep(1)", "ended without ever calling paceline.distribute()"),
        (with_line("AFTER", "paceline.distribute(model, optimizer)"), "UsageError: paceline.distribute() was called before"),
        (with_line("SETUP", "if paceline.rank() == 1: model = torch.nn.Linear(5, 2); optimizer = torch.optim.SGD(model.parameters(), lr=0.01)"),
         "ModelMismatch: worker-1 trains another model than worker-0: parameters: weight [2, 5] float32 instead of weight [2, 4] float32"),
        (with_line("SETUP", "if paceline.rank() == 1: model = torch.nn.Sequential(model)"),
         "ModelMismatch: worker-1 trains another model than worker-0: parameters: 0.weight [2, 4] float32 instead of weight [2, 4] float32"),
        (with_line("SETUP", "optimizer = torch.optim.Adafactor(model.parameters())"), "Adafactor cannot run on a parameter server"),
        (with_line("SETUP", "optimizer = torch.optim.Adam(model.parameters(), differentiable=True)"), "differentiable=True cannot run on a parameter server"),
    ],
)  # fmt: skip
def test_a_failing_script_is_named_with_its_error(run: Run, script: str, message: str) -> None:
    outcome = run(script)
    assert outcome.code == 1, outcome.output
    assert message in outcome.output
    assert outcome.result["result"] == "Failed"
    assert message.rpartition(": ")[2] in outcome.result["error"]["message"]


@pytest.mark.slow
def test_one_worker_that_crashes_in_a_ring_is_named(run: Run) -> None:
    script = with_line("STEP", "if paceline.rank() == 1 and step == 3: raise ValueError('only me')")
    outcome = run(script, strategy="AllReduce")
    assert outcome.code == 1
    assert "worker-1: ValueError: only me" in outcome.output


@pytest.mark.slow
def test_the_deadline_ends_a_training(run: Run) -> None:
    outcome = run(with_line("STEP", "import time; time.sleep(60)"), runPolicy={"activeDeadlineSeconds": 4})
    assert outcome.code == 1
    assert "spec.runPolicy.activeDeadlineSeconds, 4 s" in outcome.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "what"), [("Synchronous", "which sent nothing"), ("AllReduce", "which did not finish step 4")]
)
def test_a_silent_worker_is_named_when_time_is_up(run: Run, strategy: str, what: str) -> None:
    script = with_line("STEP", "import time; time.sleep([0, 60, 1][paceline.rank()] if step == 3 else 0)")
    outcome = run(script, strategy=strategy, workers=3, gradients={"timeoutSeconds": 4})
    assert outcome.code == 1
    assert f"PeerLost: waited 4 s (spec.gradients.timeoutSeconds) for worker-1, {what}" in outcome.output
    assert (
        outcome.result["error"]["message"]
        == f"PeerLost: waited 4 s (spec.gradients.timeoutSeconds) for worker-1, {what}"
    )


@pytest.mark.slow
def test_workers_of_a_ring_that_make_different_numbers_of_steps_are_named(run: Run) -> None:
    outcome = run(with_line("STEP", "if paceline.rank() == 1 and step == 3: break"), strategy="AllReduce", workers=3)
    assert outcome.code == 1
    assert "PeerLost: worker-1 left before step 4" in outcome.result["error"]["message"]


@pytest.mark.slow
def test_the_workers_of_a_ring_may_start_one_after_the_other(run: Run) -> None:
    script = with_line("SETUP", "import time; time.sleep(5 * paceline.rank())")
    outcome = run(script, strategy="AllReduce", gradients={"timeoutSeconds": 3})
    assert outcome.code == 0, outcome.output


def refused(tmp_path: Path, *arguments: str, cmd: list[str] | None = None, **asked: object) -> str:
    file = write(tmp_path, SCRIPT, manifest(cmd or ["python", "train.py"], **asked))  # type: ignore[arg-type]
    done = subprocess.run(
        command(file, tmp_path / "run", *arguments), cwd=tmp_path, env=environment(), capture_output=True, text=True,
        timeout=30,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "asked", "message"),
    [
        ([], {"cmd": ["python", "missing.py"]}, "there is no script 'missing.py'"),
        ([], {"cmd": ["python", "-m", "no.such.module"]}, "there is no module 'no.such.module'"),
        ([], {"cmd": ["pythno", "train.py"]}, "there is no program 'pythno'"),
        ([], {"topology": "Ring"}, "training.yaml:14: spec.topology: 'Ring' is not allowed"),
        ([], {"wrokers": 1}, "unknown field; did you mean `workers`?"),
        ([], {"workers": 0}, "spec.workers.replicas: 0 is not allowed"),
        ([], {"checkpoint": {}}, "says not when: set everySteps or everySeconds, or both"),
        ([], {"runPolicy": {"suspend": True}}, "the training is suspended"),
        (["--slow", "worker-7=30ms"], {}, "there are only 2 workers"),
        (["--slow", "worker-1=fast"], {}, "not a slowdown"),
        (["--slow", "ps-0=1s"], {}, "write the worker's name"),
        (["--replay", "nothing"], {"strategy": "Asynchronous"}, "is not the folder of a run"),
        (["--replay", "nothing"], {}, "only Asynchronous and BackupWorkers runs need it"),
        (["--port", "70000"], {}, "70000 is not a port"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    tmp_path: Path, arguments: list[str], asked: dict[str, object], message: str
) -> None:
    assert message in refused(tmp_path, *arguments, **asked)


@pytest.mark.parametrize(
    ("cmd", "mode", "message"),
    [
        (["train.sh"], 0o755, "there is no program 'train.sh' on PATH; for the one in the folder write './train.sh'"),
        (["./train.sh"], 0o644, "'./train.sh' may not be executed: chmod +x it, or write what runs it before it"),
        (["./gone.sh"], 0o755, "there is no program './gone.sh'"),
        (["./logs"], 0o755, "'./logs' is a folder"),
    ],
)
def test_a_program_that_cannot_be_started_is_refused(tmp_path: Path, cmd: list[str], mode: int, message: str) -> None:
    (tmp_path / "train.sh").write_text("#!/bin/sh\necho started\n")
    (tmp_path / "train.sh").chmod(mode)
    (tmp_path / "logs").mkdir()
    assert message in refused(tmp_path, cmd=cmd)


def test_the_path_of_the_file_is_the_one_that_is_searched(tmp_path: Path) -> None:
    asked = manifest(["only-here"], workers=1)
    container = asked["spec"]["workers"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "PATH", "value": "bin:/usr/bin"}]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/only-here").write_text("#!/bin/sh\necho started\nexit 5\n")
    (tmp_path / "bin/only-here").chmod(0o755)
    done = subprocess.run(
        command(write(tmp_path, SCRIPT, asked), tmp_path / "run"), cwd=tmp_path, env=environment(),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "[worker-0] started" in done.stdout, done.stderr
    assert "worker-0: exited with code 5" in done.stdout


@pytest.mark.parametrize(
    ("text", "message"), [("echo started", "Exec format error"), ("#!/no/such/shell", "No such file or directory")]
)
def test_a_program_that_the_system_does_not_start_is_bad_input_too(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.sh").write_text(text)
    (tmp_path / "train.sh").chmod(0o755)
    file = write(tmp_path, SCRIPT, manifest(["./train.sh"]))
    done = subprocess.run(
        command(file, tmp_path / "run"), cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert f"'./train.sh' cannot be run: {message}" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"--port: port {port} is in use" in refused(tmp_path, "--port", str(port))


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    assert "--run-dir" in refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[1, 2]", "should hold a DistributedTraining"),
        ("a: b: c", ":1: not valid YAML"),
        ("kind: A\nkind: B", ":2: `kind` is there twice"),
        ("\x00\x01", "not valid YAML"),
        ("kind: Pod", "kind: 'Pod' is not allowed"),
    ],
)
def test_a_file_that_is_no_manifest(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "paceline.cli", "validate", str(file), str(tmp_path / "gone.yaml")],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert "gone.yaml: there is no such file" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs a mount namespace of its own, and so root")
@pytest.mark.parametrize("size", ["4k", "40k"])
def test_a_full_disk_ends_the_run_with_that_message(tmp_path: Path, size: str) -> None:
    file = write(
        tmp_path, with_line("STEP", "print('x' * 500)").replace("30", "1000"), manifest(["python", "train.py"])
    )
    (tmp_path / "disk").mkdir()
    ours = shlex.join(command(file, tmp_path / "disk/run"))
    mounted = f"mount -t tmpfs -o size={size} none {tmp_path}/disk && cd {tmp_path} && {ours}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (1, 2), done.stdout
    assert "No space left on device" in done.stdout + done.stderr
