"""Scripts as they are published, with the lines of Paceline added: in every mode they learn what they learn alone."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.conftest import Run, environment, run

__all__ = ["run"]

HERE = Path(__file__).parent
LEARNT = {  # what the script prints at its end, alone and with two workers
    "image_classifier": (0.9, 1.0),
    "autoencoder": (10.0, 30.0),
    "adversarial": (0.0, 3.0),
    "language_model": (0.0, 2.4),
    "siamese": (0.8, 1.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["Synchronous", "Asynchronous", "AllReduce"])
@pytest.mark.parametrize("name", LEARNT)
def test_a_script_learns_in_every_mode(run: Run, name: str, strategy: str) -> None:
    outcome = run((HERE / f"{name}.py").read_text(), strategy=strategy, servers=2)
    assert outcome.code == 0, outcome.output
    results = [float(found) for found in re.findall(r"RESULT ([\d.]+)", outcome.output)]
    assert len(results) == 2
    least, most = LEARNT[name]
    assert all(least <= result <= most for result in results), outcome.output
    assert (outcome.folder / "weights.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNT)
def test_a_script_still_runs_alone(tmp_path: Path, name: str) -> None:
    shutil.copy(HERE / f"{name}.py", tmp_path / "train.py")
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    least, most = LEARNT[name]
    assert least <= float(done.stdout.rpartition("RESULT ")[2]) <= most, done.stdout
