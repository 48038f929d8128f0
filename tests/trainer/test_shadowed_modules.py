"""A file beside the script with the name of a module: not imported by our processes, and named when it breaks a worker."""

from pathlib import Path

import pytest

from paceline.local.shadowed_modules import hint

from .conftest import Run
from .test_runs import script

COMMAND = ["python", "train.py"]


@pytest.mark.slow
def test_our_processes_do_not_import_what_lies_beside_the_script(run: Run, tmp_path: Path) -> None:
    for name in ("statistics", "csv"):  # which the servers use
        (tmp_path / f"{name}.py").write_text("mine = 'the file beside the script'\n")
    outcome = run("import statistics; print(statistics.mine)\n" + script(3, 0), workers=1)
    assert outcome.code == 0, outcome.output
    assert "[worker-0] the file beside the script" in outcome.output, "the script sees its own folder first"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["queue", "paceline"])
def test_a_file_that_breaks_a_worker_is_named(name: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("")
    outcome = run(script(3, 0), workers=1)
    assert outcome.code == 1
    said = f"{tmp_path / name}.py is imported in the place of the module '{name}' that was meant: rename it"
    assert said in outcome.result["error"]["message"], outcome.output


@pytest.mark.parametrize(
    ("error", "file", "found"),
    [
        ("cannot import name 'Queue' from 'queue' (/x/queue.py)", "queue.py", True),
        ("cannot import name 'a' from partially initialized module 'json' (most likely ...)", "json.py", True),
        ("module 'numpy' has no attribute 'ndarray'", "numpy/__init__.py", True),
        ("No module named 'torch.nn'; 'torch' is not a package", "torch.py", True),
        ("module 'torch.nn' has no attribute 'Lin'", "train.py", False),  # the user's mistake
        ("module 'mine' has no attribute 'x'", "mine.py", False),  # there is no other of this name
        ("No module named 'mine'", "train.py", False),
    ],
)
def test_what_an_error_says(error: str, file: str, found: bool, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    told = hint(error, tmp_path, COMMAND)
    assert (told is not None) == found
    assert told is None or told.startswith(f"{tmp_path / file} is imported in the place of the module ")


def test_a_script_in_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/queue.py").touch()
    told = hint("cannot import name 'Queue' from 'queue'", tmp_path, ["python", "src/train.py"])
    assert told is not None
    assert told.startswith(str(tmp_path / "src/queue.py"))
