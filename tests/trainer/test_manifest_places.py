"""Where a manifest may come from, and where what it runs is looked for."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from paceline import cli

from .conftest import environment, manifest, write
from .test_runs import script

PACELINE = [sys.executable, "-P", "-m", "paceline.cli"]


def paceline(folder: Path, *words: str, **given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PACELINE, *words], cwd=folder, env=environment(), capture_output=True, text=True, timeout=100, **given
    )


@pytest.mark.slow
def test_a_script_beside_its_file_is_found_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    beside = "from pathlib import Path; print(Path('beside.txt').read_text())\n"
    (tmp_path / "examples/beside.txt").write_text("what lies beside it")
    write(tmp_path / "examples", beside + script(3, 0), manifest(["python", "train.py"], workers=1))
    done = paceline(tmp_path, "run", "examples/training.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    note = f"what is to be run is not here: the workers run in {tmp_path / 'examples'}, beside the file"
    assert note in done.stdout
    assert "[worker-0] what lies beside it" in done.stdout
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 1, "results are where the user is"


def test_a_script_here_comes_first(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    write(tmp_path / "examples", "print('beside the file')", manifest(["python", "train.py"], workers=1))
    (tmp_path / "train.py").write_text("print('here'); raise SystemExit(3)")
    done = paceline(tmp_path, "run", "examples/training.yaml")
    assert "[worker-0] here" in done.stdout
    assert "beside the file" not in done.stdout


def test_a_script_that_is_nowhere_is_said_with_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "examples").mkdir()
    file = tmp_path / "examples/training.yaml"
    file.write_text(yaml.safe_dump(manifest(["python", "train.py"])))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", str(file)]) == 2
    said = f"there is no script 'train.py' in {tmp_path}, nor beside the file in {tmp_path / 'examples'}"
    assert said in capsys.readouterr().err


def test_a_manifest_from_standard_input(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('begun'); raise SystemExit(3)")
    done = paceline(tmp_path, "run", "-", input=yaml.safe_dump(manifest(["python", "train.py"], workers=1)))
    assert done.returncode == 1
    assert "[worker-0] begun" in done.stdout, done.stdout + done.stderr
    assert paceline(tmp_path, "validate", "-", input="a: 1").stderr.startswith("/dev/stdin:1: ")


@pytest.mark.slow
def test_a_large_template_runs(tmp_path: Path) -> None:
    asked = manifest(["python", "train.py", "x" * 100_000], workers=1)
    template = asked["spec"]["workers"]["template"]
    template["metadata"] = {"annotations": {"note": "x" * 200_000}}
    template["spec"]["containers"][0]["env"] = [{"name": f"V{i}", "value": "x" * 120_000} for i in range(3)]
    shown = "import os, sys; print([len(os.environ['V2']), len(sys.argv[1])])\n"
    file = write(tmp_path, shown + script(3, 0), asked)
    done = paceline(tmp_path, "run", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[worker-0] [120000, 100000]" in done.stdout
