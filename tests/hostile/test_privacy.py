"""A run folder is for its owner alone, and the copy of the manifest in it holds no secret."""

import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline import cli, manifest
from paceline.files import private_writing
from paceline.manifest_redaction import HIDDEN, masked, redacted, secret
from tests.trainer.conftest import command, environment, write
from tests.trainer.conftest import manifest as a_training

from . import folders
from .manifests import with_container

VARIABLES = """
      - {name: TOKEN, value: hunter2} # why
      - name: LEARNING_RATE
        value: "0.1"
      - {"name": "A_KEY","value":"hunter3"}
      - name: CERTIFICATE
        value: |
          hunter4
          hunter5
      - value: &same hunter6
        name: PASSWORD
      - {name: AGAIN_SECRET, value: *same}
      - {name: URL, value: 'postgres://me:hunter7@db/x'}
      - {<<: *base, name: B_TOKEN}
      - {name: C_TOKEN, value: ""}
      - {name: D_TOKEN, valueFrom: {secretKeyRef: {name: x, key: y}}}
      - name: E_TOKEN
        value: 'hunter8
          hunter9'
"""
TEXT = f"""# a comment
apiVersion: paceline.dev/v1alpha1
kind: DistributedTraining
metadata:
  name: t
  annotations:
    base: &base {{name: X, value: hunter1}}
    kubectl.kubernetes.io/last-applied-configuration: |
      {{"env": [{{"name": "TOKEN", "value": "hunter10"}}]}}
spec:
  topology: ParameterServer
  workers:
   template:
    spec:
     containers:
     - name: trainer
       env: {VARIABLES.replace(chr(10), chr(10) + " ")[:-1]}
       command: [python, train.py]
"""


def test_the_copy_of_a_manifest_holds_no_secret() -> None:
    out = masked(TEXT)
    assert "hunter" not in out
    assert "# a comment" in out
    assert "{name: TOKEN, value: (not shown)} # why" in out
    found = manifest.one(out, Path("x")).spec.workers.template.spec.containers[0]
    values = {v.name: v.value for v in found.env}
    assert values["LEARNING_RATE"] == "0.1"
    assert values["C_TOKEN"] == values["D_TOKEN"] == ""
    assert {name for name, value in values.items() if value == HIDDEN} == {
        "TOKEN", "A_KEY", "CERTIFICATE", "PASSWORD", "AGAIN_SECRET", "URL", "B_TOKEN", "E_TOKEN"
    }  # fmt: skip
    assert masked(out) == out
    assert "hunter" not in redacted(TEXT)


def test_a_manifest_without_secrets_is_copied_as_it_is() -> None:
    text = with_container("env: [{name: EPOCHS, value: '3'}]").replace("\n", "   # why\n", 1)
    assert masked(text) == text


@pytest.mark.parametrize(
    ("name", "value", "looks"),
    [
        ("HF_TOKEN", "x", True), ("AWS_SECRET_ACCESS_KEY", "x", True), ("WANDB_API_KEY", "x", True), ("dbPassword", "x", True),
        ("KEY", "x", True), ("PASS", "x", True), ("DATABASE", "mysql://u:p@h/d", True), ("A", "-----BEGIN PRIVATE KEY-----", True),
        ("A", "ghp_0123456789abcdef", True), ("EPOCHS", "3", False), ("DATA", "https://example.org/x", False), ("PATH", "/usr/bin", False),
        ("BATCH", "64", False), ("OMP_NUM_THREADS", "1", False), ("PYTHONPATH", "src:lib", False),
    ],
)  # fmt: skip
def test_what_looks_like_a_secret(name: str, value: str, looks: bool) -> None:
    assert secret(name, value) is looks


VALUE = st.sampled_from(
    [
        "hunter2",
        "'hunter2'",
        '"hunter2"',
        "|\n          hunter2\n",
        "&a hunter2",
        "!!str hunter2",
        ">-\n          hunter2",
        "'hunter2\n\n          b'",
    ]
)
SPACE = st.sampled_from([" ", "   ", " # hunter0 is no value\n          "])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.booleans(), SPACE, VALUE), min_size=1, max_size=4))
def test_however_a_value_is_written_it_is_not_in_the_copy(variables: list[tuple[bool, str, str]]) -> None:
    rows = ""
    for number, (first, space, value) in enumerate(variables):
        value = value.replace("&a", f"&a{number}")
        named, valued = f"name: TOKEN_{number}\n", f"value:{space}{value}\n"
        rows += f"       - {valued}         {named}" if first else f"       - {named}         {valued}"
    text = TEXT.replace(TEXT[TEXT.index("       - {name: TOKEN") : TEXT.index("       command")], rows)
    manifest.one(text, Path("x"))
    out = masked(text)
    assert "hunter2" not in out
    assert {v.value for v in manifest.one(out, Path("x")).spec.workers.template.spec.containers[0].env} == {HIDDEN}


def test_a_problem_does_not_tell_the_value_of_a_variable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, env in enumerate(
        ("[{name: PIN, value: 4711}]", "{PIN: 4711}", "'PIN=4711'", "[4711]", "[{value: '4711'}]")
    ):
        file = tmp_path / f"{number}.yaml"
        file.write_text(with_container(f"env: {env}"))
        assert cli.main(["validate", str(file)]) == 2
        err = capsys.readouterr().err
        assert ".env" in err
        assert "4711" not in err


def test_the_copy_is_not_run_as_if_it_were_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.yaml").write_text(masked(with_container("env: [{name: TOKEN, value: hunter2}]")))
    assert cli.main(["run", str(tmp_path / "m.yaml"), "--run-dir", str(tmp_path / "run")]) == 2
    assert "env: the value of TOKEN was left out of this copy of a manifest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "[{name: TOKEN, value: hunter2}, {name: LR, value: '1'}]",
            "did not succeed",
        ),  # so the specification is the same
        ("[{name: TOKEN, value: another}, {name: LR, value: '1'}]", "did not succeed"),
        ("[{name: TOKEN, value: hunter2}, {name: LR, value: '2'}]", "was made with another specification"),
        ("[{name: LR, value: '1'}]", "was made with another specification"),
    ],
)
@pytest.mark.parametrize("copied", [masked, str], ids=["masked", "by an older version"])
def test_a_replay_compares_all_but_secrets(
    copied: object, given: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(copied)

    def made(env: str) -> str:
        return with_container(f"env: {env}").replace(
            "topology: ParameterServer", "topology: ParameterServer, parameterServer: {strategy: Asynchronous}"
        )

    folders.a_good_run(tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    (tmp_path / "run/manifest.yaml").write_text(copied(made("[{name: TOKEN, value: hunter2}, {name: LR, value: '1'}]")))
    (tmp_path / "m.yaml").write_text(made(given))
    assert (
        cli.main(["run", str(tmp_path / "m.yaml"), "--replay", str(tmp_path / "run"), "--run-dir", str(tmp_path / "x")])
        == 2
    )
    assert message in capsys.readouterr().err


def test_files_for_the_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with private_writing.owner_only() as umask:
            (tmp_path / "a").write_text("")
        assert umask == 0o022
        (tmp_path / "b").write_text("")
        private_writing.replace(tmp_path / "c", b"")
        private_writing.write_asked(tmp_path / "d", b"")
    finally:
        assert os.umask(before) == 0o022
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "abcd"] == [0o600, 0o644, 0o600, 0o644]


SCRIPT = """
import os, torch, paceline
open(os.environ["OUT"], "w").write(os.environ["MY_TOKEN"])
model = torch.nn.Linear(2, 1)
model, optimizer = paceline.distribute(model, torch.optim.SGD(model.parameters(), lr=0.1))
for _ in range(3):
    optimizer.zero_grad()
    model(torch.ones(4, 2)).sum().backward()
    optimizer.step()
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["Synchronous", "AllReduce"])
def test_a_run_folder_is_private_and_the_scripts_files_are_not(strategy: str, tmp_path: Path) -> None:
    data = a_training(["python", "train.py"], strategy)
    data["spec"]["workers"]["template"]["spec"]["containers"][0]["env"] = [
        {"name": "MY_TOKEN", "value": "hunter2"}, {"name": "OUT", "value": str(tmp_path / "out.txt")},
    ]  # fmt: skip
    file = write(tmp_path, SCRIPT, data)
    done = subprocess.run(
        ["sh", "-c", 'umask 022; exec "$@"', "sh", *command(file, tmp_path / "run")],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "hunter2" not in done.stdout
    assert (tmp_path / "out.txt").read_text() == "hunter2"
    assert stat.S_IMODE((tmp_path / "out.txt").stat().st_mode) == 0o644
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    for path in [tmp_path / "run", *(tmp_path / "run").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
