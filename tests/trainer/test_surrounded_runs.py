"""Whole runs where something around them is missing, full or read-only: a right result or words, and nothing left."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from .conftest import environment, eventually, manifest, write
from .test_runs import script

PACELINE = shlex.join([sys.executable, "-P", "-m", "paceline.cli"])
AT_ONCE = int(os.environ.get("PACELINE_RUNS_AT_ONCE", "4"))  # 40 take some minutes on two cores


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not in /tmp, over which these tests mount something else."""
    made = Path(tempfile.mkdtemp(dir="/var/tmp"))
    write(made, script(3, 0), manifest(["python", "train.py"], workers=1))
    yield made
    shutil.rmtree(made)


def processes(folder: Path) -> list[int]:
    """Those of the runs whose results are in this folder."""
    found, mark = [], f"PACELINE_OUTPUT={folder}".encode()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            variables = Path("/proc", entry, "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(v.startswith(mark) for v in variables):
            found.append(int(entry))
    return found


def mounted(folder: Path, *commands: str) -> subprocess.CompletedProcess[str]:
    """Run these in a mount namespace of their own, in the folder: what they mount goes with them."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount anything, also not for itself")
    return subprocess.run(
        ["unshare", "--mount", "sh", "-ec", "\n".join(commands)],
        cwd=folder, env=environment(), capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


def succeeded(run: Path) -> bool:
    return {"result.json", "weights.safetensors"} <= {file.name for file in run.iterdir()}


READ_ONLY = ("mount --bind . .", "mount -o remount,bind,ro .", 'cd "$PWD"')


def test_in_a_read_only_folder_another_one_is_asked_for(folder: Path) -> None:
    done = mounted(folder, *READ_ONLY, f"exec {PACELINE} run training.yaml")
    said = "runs: cannot be written: Read-only file system; choose another place with --run-dir\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.slow
def test_a_read_only_folder_is_enough_with_another_one_for_the_results(folder: Path, tmp_path: Path) -> None:
    done = mounted(folder, *READ_ONLY, f"exec {PACELINE} run training.yaml --run-dir {tmp_path}/run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert succeeded(tmp_path / "run")
    assert processes(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kibibytes", "used", "code", "said"),
    [
        (
            32,
            28,
            2,
            "/tmp: cannot be written: No space left on device; name a folder that has room in the variable TMPDIR",
        ),
        (24, 0, 0, "the summary of the training could not be written: [Errno 28] No space left on device"),
    ],
)
def test_a_full_tmp_is_said_or_does_not_matter(folder: Path, kibibytes: int, used: int, code: int, said: str) -> None:
    if Path(sys.executable).is_relative_to("/tmp"):
        pytest.skip("the environment lies in /tmp, over which this test mounts something else")
    full = (f"mount -t tmpfs -o size={kibibytes}k tmpfs /tmp", f"head -c {used}k /dev/zero >/tmp/used")
    done = mounted(folder, *full, f"exec {PACELINE} run training.yaml --run-dir run")
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
    assert code or succeeded(folder / "run")
    assert processes(folder) == []


@pytest.mark.slow
def test_without_a_home_and_under_nohup_when_the_terminal_goes(folder: Path) -> None:
    write(folder, script(20, 0.05), manifest(["python", "train.py"], workers=1))
    bare = {k: v for k, v in environment().items() if k not in ("HOME", "USER", "LOGNAME")}
    words = ["nohup", *shlex.split(PACELINE), "run", "training.yaml", "--run-dir", "run"]
    with open(folder / "out", "w") as out:
        running = subprocess.Popen(words, cwd=folder, env=bare, stdout=out, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: "status " in (folder / "out").read_text())
        running.send_signal(signal.SIGHUP)
        assert running.wait(timeout=60) == 0, (folder / "out").read_text()
    finally:
        running.kill()
        running.wait()
    assert succeeded(folder / "run")
    assert processes(folder) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.sweep
def test_runs_that_are_started_at_once_all_end_well(folder: Path) -> None:
    asked = manifest(["python", "train.py"], "AllReduce", workers=1, runPolicy={"startTimeoutSeconds": 500})
    (folder / "training.yaml").write_text(yaml.safe_dump(asked))
    words = [*shlex.split(PACELINE), "run", "training.yaml"]
    runs = [
        subprocess.Popen(
            words, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(AT_ONCE)
    ]
    told = [run.communicate(timeout=500)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * AT_ONCE, told
    found = list((folder / "runs").iterdir())
    assert len(found) == AT_ONCE
    assert all(map(succeeded, found))
    assert processes(folder) == []
