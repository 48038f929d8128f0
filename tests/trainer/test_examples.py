"""The examples train to what they promise."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import command, environment

EXAMPLES = Path(__file__).parents[2] / "manifests/examples"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "digits-async", "digits-allreduce"])
def test_digits_are_read(tmp_path: Path, name: str) -> None:
    subprocess.run(command(EXAMPLES / f"{name}.yaml", tmp_path / "run"), env=environment(), check=True, timeout=110)
    assert json.loads((tmp_path / "run/result.json").read_text())["reported"]["accuracy"] >= 0.97


@pytest.mark.slow
def test_the_language_model_learns(tmp_path: Path) -> None:
    text = (EXAMPLES / "language.yaml").read_text().replace("language]", "language, --steps, '12']")
    (tmp_path / "short.yaml").write_text(text)
    subprocess.run(command(tmp_path / "short.yaml", tmp_path / "run"), env=environment(), check=True, timeout=110)
    assert json.loads((tmp_path / "run/result.json").read_text())["reported"]["bits_per_byte"] < 5.5


@pytest.mark.slow
def test_an_example_runs_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "paceline.examples.digits", "--epochs", "3"], capture_output=True, text=True, timeout=60
    )
    assert "test accuracy 9" in done.stdout, done.stderr
