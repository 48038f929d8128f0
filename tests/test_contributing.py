"""CONTRIBUTING's recipe for a new update strategy is followed to the letter, in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.trainer.conftest import manifest
from tests.trainer.test_runs import script

ROOT = Path(__file__).parents[1]
RECIPE = (ROOT / "CONTRIBUTING.md").read_text().partition("## A new update strategy")[2]
STRATEGIES = Path("trainer/paceline_core/strategies")
COPIED = ("trainer", "operator", "charts", "docs", "manifests", "tests", "pyproject.toml")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Copy:
    """A copy of the repository, and what is run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "cluster"))
            else:
                shutil.copy(source, folder / name)

    def run(self, *command: str) -> str:
        path = os.pathsep.join(str(self.folder / part) for part in ("trainer", "operator", "."))
        done = subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=os.environ | {"PYTHONPATH": path},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def changed(self) -> set[str]:
        """The files that are not as in the repository."""
        files = [p.relative_to(self.folder) for p in self.folder.rglob("*") if p.is_file()]
        kept = [
            f for f in files if "__pycache__" not in f.parts and not f.parts[0].startswith(".") and f.parts[0] != "run"
        ]
        return {
            str(f)
            for f in kept
            if not (ROOT / f).is_file() or (ROOT / f).read_bytes() != (self.folder / f).read_bytes()
        }


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """With the strategy of the recipe added by its first two steps."""
    it = Copy(tmp_path / "copy")
    code = re.findall(r"```python\n(.*?)```", RECIPE, flags=re.DOTALL)
    assert len(code) == 1
    (it.folder / STRATEGIES / "share.py").write_text(code[0])
    table = it.folder / STRATEGIES / "__init__.py"
    text = table.read_text().replace("    )\n}", "        SHARE,\n    )\n}")
    text = text.replace("\nSTRATEGIES:", "\nfrom paceline_core.strategies.share import SHARE\n\nSTRATEGIES:")
    table.write_text(text)
    return it


def test_the_files_touched_are_those_that_it_names(copy: Copy) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("docs", "crd"):
        lines = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
        assert lines is not None
        for command in re.findall(r"@\$\(BIN\)/python (.*)", lines.group(1)):
            copy.run(*command.split())
    changed = copy.changed()
    assert changed > {str(STRATEGIES / "share.py"), str(STRATEGIES / "__init__.py"), "manifests/crd.yaml"}
    unnamed = {
        f for f in changed if f not in RECIPE and not any(f"`{d}/`" in RECIPE for d in map(str, Path(f).parents))
    }
    assert not unnamed
    assert "`spec.parameterServer.share.percent`" in (copy.folder / "docs/reference.md").read_text()
    assert "set strategy: Share" in (copy.folder / "manifests/crd.yaml").read_text()
    assert "or Share" in (copy.folder / "charts/paceline/dashboards/training.json").read_text()


def test_it_keeps_the_contract_of_a_strategy(copy: Copy) -> None:
    told = copy.run("-m", "pytest", "-v", "tests/core/test_strategy.py", "tests/core/test_replay.py", "-k", "Share")
    assert "2 passed" in told or told.count("PASSED") == 2


def test_it_trains_and_names_the_slow_worker(copy: Copy) -> None:
    (copy.folder / "train.py").write_text(script(80, 0.02))
    asked = manifest([sys.executable, "train.py"], strategy="Share", workers=4)
    asked["spec"]["parameterServer"]["share"] = {"percent": 70}
    (copy.folder / "training.yaml").write_text(yaml.safe_dump(asked))
    told = copy.run("-m", "paceline.cli", "run", "training.yaml", "--run-dir", "run", "--slow", "worker-1=10x")
    rows = [line for line in told.splitlines() if "worker-" in line and "80/80" in line]
    assert [("slow" in row) for row in sorted(rows)] == [False, True, False, False], told
