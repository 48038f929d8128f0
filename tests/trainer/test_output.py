"""Showing is never on the path of keeping: outputs that are full, closed, broken, slow or of another alphabet."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from paceline.local.background_output import MOST_BYTES, SLOW, BackgroundOutput

from .conftest import command, environment, manifest, write
from .made import a_result, a_run, a_status
from .test_runs import script

FULL, CLOSED = "No space left on device", "Broken pipe"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("around", "told"),
    [
        ("{} >/dev/full 2>err", f"the output cannot be written: {FULL}; everything is in "),
        ("{} -o json 2>err | head -1", f"the output cannot be written: {CLOSED}; everything is in "),
        ("PYTHONIOENCODING=ascii {} >out 2>err", ""),
        ("{} <&- >&- 2>&-", None),
    ],
)
def test_a_run_goes_on_whatever_becomes_of_its_output(tmp_path: Path, around: str, told: str | None) -> None:
    shown = script(8, 0) + "    print('\\u2192 step', step)\n"
    file = write(tmp_path, shown, manifest(["python", "train.py"], workers=1))
    line = around.format(" ".join(command(file, tmp_path / "run"))) + "; exit ${PIPESTATUS[0]}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), timeout=100, check=False)
    log = (tmp_path / "run/logs/worker-0.log").read_text(encoding="utf-8")
    assert done.returncode == 0, log
    assert [n for n in range(8) if f"→ step {n}" not in log] == []
    assert {"result.json", "weights.safetensors"} <= {f.name for f in (tmp_path / "run").iterdir()}
    if told is not None:
        error = (tmp_path / "err").read_text()
        assert error.startswith(told)
        assert error.count("\n") == bool(told)


@pytest.mark.slow
def test_a_run_goes_on_while_nobody_reads_its_output(tmp_path: Path) -> None:
    """As with `less`, or a terminal that was stopped by Ctrl-S."""
    shown = script(3, 0) + "    print('x' * 100_000)\n"
    file = write(tmp_path, shown, manifest(["python", "train.py"], workers=1))
    words = command(file, tmp_path / "run")
    with subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True) as running:
        while not (tmp_path / "run/result.json").exists():
            assert running.poll() is None
            threading.Event().wait(0.1)
        out = running.communicate(timeout=60)[0]
    assert running.returncode == 0
    assert out.count("x" * 100_000) == 3
    assert "Succeeded" in out


@pytest.fixture
def told() -> list[str]:
    return []


def test_what_an_encoding_lacks_is_written_in_another_way(told: list[str]) -> None:
    reader, writer = os.pipe()
    output = BackgroundOutput(writer, "ascii", told.append)
    print("a → b \udc80", file=output)
    output.finish()
    os.close(writer)
    with open(reader, "rb") as file:
        assert file.read() == b"a \\u2192 b \\udc80\n"
    assert told == []


def test_a_slow_reader_gets_whole_texts_and_keeps_nobody(told: list[str]) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # as some shells' children leave it
    output, text = BackgroundOutput(writer, "utf-8", told.append), "x" * 9_999 + "\n"
    for _ in range(3 * MOST_BYTES // len(text)):
        output.write(text)
    assert told == [SLOW]
    with open(reader) as file:
        got: list[str] = []
        thread = threading.Thread(target=lambda: got.append(file.read()))
        thread.start()
        output.finish()
        os.close(writer)
        thread.join()
    assert MOST_BYTES // 2 < len(got[0]) < 2 * MOST_BYTES
    assert set(got[0].splitlines(keepends=True)) == {text}


def test_an_output_that_breaks_is_told_once(told: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    output = BackgroundOutput(writer, "utf-8", told.append)
    for _ in range(3):
        print("a line", file=output)
    output.finish()
    print("a line", file=output)
    os.close(writer)
    assert told == [f"the output cannot be written: {CLOSED}"]


@pytest.mark.parametrize("words", ["top", "report", "trace", "validate manifest.yaml", "--help"])
@pytest.mark.parametrize(
    ("around", "code", "error"),
    [
        ("{} >/dev/full", 1, f"standard output cannot be written: {FULL}\n"),
        ("{} | true", 1, ""),
        ("{} >&-", 0, ""),
    ],
)
def test_other_commands_end_without_a_traceback(words: str, around: str, code: int, error: str, tmp_path: Path) -> None:
    found = a_status()
    a_run(tmp_path / "run", result=a_result(found), status=found)
    (tmp_path / "run/traces").mkdir(exist_ok=True)
    given = words + (" run" if words.split()[0] in ("top", "report", "trace") else "")
    started = f"sleep 0.3; exec {sys.executable} -m paceline.cli {given.replace('manifest', 'run/manifest')}"
    line = around.format(f"bash -c '{started}'") + "; exit ${PIPESTATUS[0]}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    if words == "trace":  # this run has none: that is what is said
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    else:
        assert (done.returncode, done.stderr) == (code, error)
