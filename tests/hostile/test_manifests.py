"""Hostile manifests: `paceline validate` and `paceline run` refuse them with a line that says what to do."""

import copy
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline import cli, manifest, manifest_nodes
from paceline_core.errors import SpecError

from . import manifests
from .checks import MOST_SECONDS, check_output, limited
from .manifests import REFUSED, SPECIAL, a_manifest

REAL = ("billion laughs", "billion merges", "1 GB", "9,000 unknown fields", "a comment of 10 MB", "depth 500,000")


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_manifest_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, began = manifests.a_file(tmp_path, name), time.monotonic()
    assert cli.main(["validate", str(file)]) == 2
    assert time.monotonic() - began < MOST_SECONDS
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{file}:")
    assert REFUSED[name][1] in err
    assert len(err) < 20_000
    check_output(err)


@pytest.mark.parametrize("name", ["a recursive alias", "an escape character", "a variable's name with =", "a set"])
def test_a_hostile_manifest_is_not_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = manifests.a_file(tmp_path, name)
    assert cli.main(["run", str(file), "--run-dir", str(tmp_path / "run")]) == 2
    assert REFUSED[name][1] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", SPECIAL)
def test_what_is_no_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = SPECIAL[name]
    began = time.monotonic()
    assert cli.main(["validate", str(make(tmp_path / "x"))]) == 2
    assert time.monotonic() - began < MOST_SECONDS
    err = capsys.readouterr().err
    assert message in err
    check_output(err)


@pytest.mark.parametrize("name", REAL)
def test_a_hostile_manifest_takes_little_of_the_machine(name: str, tmp_path: Path) -> None:
    """Measured on two idle cores: at most 0.4 s and 48 MiB, of which 0.25 s and 34 MiB are Python with pydantic."""
    limited("validate", str(manifests.a_file(tmp_path, name)), cwd=tmp_path)


def test_a_manifest_may_come_from_a_pipe(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "paceline.cli", "validate", "/dev/stdin"],
        input=a_manifest(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "/dev/stdin: t is valid\n")


def test_a_pipe_may_take_its_time(tmp_path: Path) -> None:
    pipe = manifests.a_pipe(tmp_path / "pipe")

    def write() -> None:
        with pipe.open("w") as file:
            for part in a_manifest().splitlines(keepends=True):
                file.write(part)
                file.flush()
                time.sleep(0.3)

    writer = threading.Thread(target=write)
    writer.start()
    assert manifest.read(pipe).metadata.name == "t"
    writer.join()


def test_a_right_manifest_is_left_in_peace(tmp_path: Path) -> None:
    free = "{date: 2024-02-29, time: 12:30, text: \u202eb, base: &b {x: 1}, merged: {<<: *b}, again: *b, '1': on}"
    text = a_manifest(template=f", metadata: {{annotations: {free}}}", spec=", gradients: {maxNorm: 1.0e+10}")
    found = manifest.one("\ufeff".encode().decode("utf-8-sig") + text, Path("x"))
    assert found.spec.workers.template.metadata["annotations"] == {
        "date": "2024-02-29", "time": 750, "text": "\u202eb", "base": {"x": 1}, "merged": {"x": 1},
        "again": {"x": 1}, "1": True,
    }  # fmt: skip


def test_a_mark_of_the_byte_order_is_no_character(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbf" + a_manifest(end="kind: x\n").encode())
    with pytest.raises(SpecError, match=":5: `kind` is there twice"):
        manifest.read(tmp_path / "x.yaml")


PIECES = st.sampled_from(
    ["&a ", "*a", "<<: *a", "[", "]", "{", "}", "? ", ": ", "- ", "\t", "\n", "\n  ", "---\n", "|\n", ">", "'", '"', "!!set ", "!x ",
     "#", "~", ".inf", "2024-02-31", "0x", "1:1:1", "\\e", "\x1b", "\x00", "\ufeff", "=", "%YAML 1.2\n", "\u2028", "²", "1e999", "@"]
)  # fmt: skip
EDITS = st.lists(
    st.tuples(st.integers(0, 600), st.integers(0, 5), PIECES | st.text(max_size=5)), min_size=1, max_size=8
)
SEED = a_manifest(
    spec=", gradients: {timeoutSeconds: 5}, runPolicy: {activeDeadlineSeconds: 9.5}",
    container="{name: trainer, command: [python, train.py], env: [{name: A, value: b}], resources: {limits: {x/gpu: 1}}}",
)


@settings(deadline=None, max_examples=300)
@given(EDITS)
def test_any_text_is_a_manifest_or_is_refused(edits: list[tuple[int, int, str]]) -> None:
    text = SEED
    for at, gone, new in edits:
        text = text[:at] + new + text[at + gone :]
    _read(text.encode("utf-8", errors="surrogatepass"))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.integers(0, len(SEED)))
def test_any_bytes_are_a_manifest_or_are_refused(some: bytes, at: int) -> None:
    _read(some)
    _read(SEED.encode()[:at] + some + SEED.encode()[at:])


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=8), ANY), min_size=1, max_size=3))
def test_any_values_are_a_manifest_or_are_refused(changes: list[tuple[list[int], object]]) -> None:
    data = copy.deepcopy(yaml.safe_load(SEED))
    for way, value in changes:
        at = data
        for turn in way:
            if not at or not isinstance(at, dict | list):
                break
            key = list(at)[turn % len(at)] if isinstance(at, dict) else turn % len(at)
            if turn == way[-1] or not isinstance(at[key], dict | list):
                at[key] = value
                break
            at = at[key]
    _read(yaml.safe_dump(data, allow_unicode=True).encode("utf-8", errors="surrogatepass"))


def _read(data: bytes) -> None:
    """Everything that is no manifest is a SpecError, and nothing that is one goes on without an end."""
    path = Path("x.yaml")
    try:
        found = manifest.every(manifest.decoded(data, path), path)
    except SpecError as error:
        found, problems = [], error.problems
        assert [p for p in problems if not p.startswith("x.yaml")] == []
    for training in found:
        training.model_dump_json()


def test_the_fast_reader_of_yaml_is_there() -> None:
    assert manifest_nodes._Loader is yaml.CSafeLoader
