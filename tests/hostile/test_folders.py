"""Hostile run folders: `report`, `top`, `trace` and `--replay` say what is wrong, or show what there is, within limits."""

import io
import os
import shutil
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline import cli
from paceline.server.gradients.sequencer import read_arrivals
from paceline_core.errors import ReplayError

from . import folders
from .checks import MOST_SECONDS, check_output, limited
from .folders import FOLDERS, SECRET

ROWS = [(name, command) for name, it in FOLDERS.items() for command in it.commands]
REAL = [
    ("time=inf", "report"), ("a line of 10 MB", "report"), ("100,000 workers", "report"), ("deep JSON", "top"),
    ("JSON of 10 million lists", "report"), ("150,000 workers", "top"), ("a trace of 10 million lists", "trace"), ("a log of 1 GB", "report"),
]  # fmt: skip


def arguments(command: str, run: Path) -> list[str]:
    if command == "replay":
        good = run.parent / "good.yaml"
        folders.a_good_run(run.parent / "good")
        shutil.copy(run.parent / "good/manifest.yaml", good)
        return ["run", str(good), "--replay", str(run), "--run-dir", str(run.parent / "new")]
    return [command, str(run)]


def seen(folder: Path) -> dict[str, str]:
    """What lies outside of the run folder."""
    return {str(p): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("name", "command"), ROWS)
def test_a_hostile_run_folder(name: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    it, run = FOLDERS[name], folders.make(tmp_path, name)
    before, words = seen(tmp_path / "outside"), arguments(command, run)
    began = time.monotonic()
    code = cli.main(words)
    assert time.monotonic() - began < MOST_SECONDS
    out, err = capsys.readouterr()
    assert code == (it.code if it.message else 0), err
    assert it.message in err
    assert len(out + err) < 30_000
    check_output(out + err)
    assert seen(tmp_path / "outside") == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.name not in ("good", "good.yaml")) == ["outside", "run"]
    check_written(run)
    assert SECRET not in out + err


def check_written(run: Path) -> None:
    """The page and the trace are new files, and show nothing of what lies elsewhere."""
    for path in (run / "report.html", run / "trace.json"):
        if path.is_file() and not path.is_symlink():
            assert path.stat().st_mode & 0o777 == 0o600
            assert SECRET not in path.read_text()
            assert len(path.read_text()) < 1_000_000
            check_output(path.read_text().replace("\t", " "))
    assert not list(run.glob(".paceline-*"))


@pytest.mark.parametrize(("name", "command"), REAL)
def test_a_hostile_run_folder_takes_little_of_the_machine(name: str, command: str, tmp_path: Path) -> None:
    """Measured on two idle cores: at most 1.0 s and 120 MiB, of which 0.35 s and 39 MiB are Python with its libraries."""
    limited(*arguments(command, folders.make(tmp_path, name)), cwd=tmp_path, codes=(0, 2))


def test_a_page_may_go_where_the_user_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders.a_good_run(tmp_path / "run")
    (tmp_path / "link.html").symlink_to("target.html")
    (tmp_path / "target.html").write_text("as it was")
    assert cli.main(["report", str(tmp_path / "run"), "-o", str(tmp_path / "link.html")]) == 0
    assert (tmp_path / "target.html").read_text() == "as it was"
    assert not (tmp_path / "link.html").is_symlink()
    assert cli.main(["report", str(tmp_path / "run"), "-o", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()


def test_a_broken_run_is_not_in_the_way_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders.a_good_run(tmp_path / "runs/good")
    folders.a_good_run(tmp_path / "runs/broken")
    (tmp_path / "runs/broken/endpoints.json").write_text("{")
    (tmp_path / "runs/broken/result.json").unlink()
    os.utime(tmp_path / "runs/good/manifest.yaml")
    assert cli.main(["top"]) == 0


FILES = ("result.json", "status.json", "steps.csv", "traces/worker-0.json", "manifest.yaml", "arrivals-ps-0.csv")
PIECES = st.sampled_from(
    ["inf", "nan", "NaN", "Infinity", "-1", "1e300", "1e999", "9" * 30, "9" * 5000, "null", "[]", "{}", '"', ",", "\n", "\x00", "\x1b[31m",
     "²", "\\ud800", "[" * 2000, "true", "-0.0", "5e-324", "1e-9", "0", "\r", "<b>", "\u202e", ":", "x" * 70_000]
)  # fmt: skip
EDITS = st.lists(
    st.tuples(st.sampled_from(FILES), st.floats(0, 1), st.integers(0, 8), PIECES | st.binary(max_size=4)),
    min_size=1, max_size=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    folders.a_good_run(folder)
    return folder


@settings(deadline=None, max_examples=100)
@given(EDITS)
def test_any_run_folder_is_shown_or_refused(good: Path, edits: list[tuple[str, float, int, str | bytes]]) -> None:
    before = {name: (good / name).read_bytes() for name in FILES}
    try:
        for name, at, gone, new in edits:
            data = (good / name).read_bytes()
            place = int(at * len(data))
            new = new.encode("utf-8", errors="surrogatepass") if isinstance(new, str) else new
            (good / name).write_bytes(data[:place] + new + data[place + gone :])
        shown = io.StringIO()
        with redirect_stdout(shown), redirect_stderr(shown):
            for words in (["report"], ["trace"], ["top"], ["top", "-o", "json"]):
                assert cli.main([*words, str(good)]) in (0, 2)
        check_output(shown.getvalue())
        check_written(good)
        read(good)
    finally:
        for name, data in before.items():
            (good / name).write_bytes(data)


def read(folder: Path) -> None:
    with suppress(ReplayError):
        read_arrivals(folder / "arrivals-ps-0.csv")
