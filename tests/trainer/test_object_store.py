"""Checkpoints in a real S3 server: refusals and failures in words, and saves that are killed."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from paceline import cli, failure
from paceline.checkpoints import finding, object_store
from paceline.checkpoints.checkpoint_manifest import Manifest, StoredFile
from paceline.checkpoints.object_folder import ObjectFolder
from paceline.server.checkpoints.beginning import Beginning
from paceline_core.errors import CheckpointDamaged, StoreRefused, StoreUnreachable
from paceline_core.launch import NEWEST, Role

from . import s3
from .conftest import eventually, manifest, write
from .inprocess import launch
from .s3 import Hook, Proxy, S3Server
from .test_checkpoint_files import newest, saved

SAVE = """
import sys
from pathlib import Path
from paceline.checkpoints import finding, object_store
from paceline.checkpoints.checkpoint_manifest import Manifest
from paceline.checkpoints.object_folder import ObjectFolder
object_store.PIECE = 5 << 20
root = ObjectFolder(sys.argv[1], patience=5.0)
where = finding.of_step(root, 15)
where.begin()
sizes = {"ps-0.0.parameters.safetensors": 11 << 20, "worker-0.state": 10}
files = [where.write(name, lambda path, n=size: path.write_bytes(bytes(n))) for name, size in sizes.items()]
where.commit(Manifest(15, (15,), "digits", "ab" * 32, 1.5, 1, 1, {}, tuple(files)))
root.prune(1)
"""


@pytest.fixture
def place(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> ObjectFolder:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return ObjectFolder(f"s3://{s3_server.bucket()}/digits", patience=0.0)


def nothing(*_: object) -> None:
    """Let the server answer."""


@contextmanager
def proxy(server: S3Server, *hooks: Hook) -> Iterator[Proxy]:
    it = Proxy(server.endpoint, *hooks)
    try:
        yield it
    finally:
        it.close()


def on_disk(server: S3Server, place: ObjectFolder) -> Path:
    return server.folder / place.url.removeprefix("s3://")


@pytest.mark.slow
@pytest.mark.parametrize("carried_out", [False, True])
def test_killed_at_every_request_of_a_save_a_whole_checkpoint_stays(
    s3_server: S3Server,
    place: ObjectFolder,
    tmp_path: Path,
    carried_out: bool,
) -> None:
    count, killed = 0, True
    while killed:
        root = ObjectFolder(f"s3://{s3_server.bucket()}/digits", patience=0.0)
        saved(root, 10)
        killed = killed_while_saving(s3_server, root, count, carried_out, tmp_path)
        found, wrong = newest(root)
        assert wrong == [], "nothing that is half there is taken for a checkpoint"
        assert found.name in ("step-000000010", "step-000000015")
        saved(root, 20)
        root.prune(1)
        left = {path.name for path in on_disk(s3_server, root).iterdir() if any(path.iterdir())}
        assert left == {"step-000000020"}, "what was left goes with the next"
        count += 1
    assert count > 10


def killed_while_saving(server: S3Server, root: ObjectFolder, at: int, carried_out: bool, tmp_path: Path) -> bool:
    """Whether a process that saves one more is killed at this request, before or after it is carried out."""
    started = threading.Event()
    child: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        started.wait(30)
        child[0].kill()
        child[0].wait(30)

    def at_it(number: int, *_: object) -> None:
        if number == at:
            kill()

    with proxy(server, *((nothing, at_it) if carried_out else (at_it, nothing))) as it:
        told = os.environ | server.environment(it.endpoint) | {"TMPDIR": str(tmp_path)}
        child.append(subprocess.Popen([sys.executable, "-P", "-c", SAVE, root.url], env=told))
        started.set()
        code = child[0].wait(60)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_a_large_file_goes_in_pieces_and_a_byte_of_it_is_missed(
    s3_server: S3Server,
    place: ObjectFolder,
) -> None:
    content = os.urandom(2 * object_store.PIECE + 5)
    step = finding.of_step(place, 1)
    with proxy(s3_server) as it, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", it.endpoint)
        stored = step.write("large", lambda path: path.write_bytes(content))
        assert sum("partNumber" in request for request in it.seen) == 3
    with step.local(stored) as path:
        assert path.read_bytes() == content
    assert not path.exists(), "it is removed"
    file = on_disk(s3_server, step) / "large"
    file.write_bytes(content[: object_store.PIECE] + b"?" + content[object_store.PIECE + 1 :])
    with pytest.raises(CheckpointDamaged, match=f"{step}/large: is not as it was written"), step.local(stored):
        pass


def a_manifest(*files: StoredFile, training: str = "digits") -> Manifest:
    return Manifest(5, (5,), training, "ab" * 32, 1.5, 1, 1, {}, files)


def test_only_one_completes_a_checkpoint(place: ObjectFolder) -> None:
    step = finding.of_step(place, 5)
    step.commit(a_manifest())
    step.commit(a_manifest())  # the answer to it was lost
    with pytest.raises(StoreRefused, match="another process has completed this checkpoint: let only one"):
        step.commit(a_manifest(training="another"))
    with pytest.raises(StoreRefused, match=r"worker-0\.state: is not there any more as it was written"):
        finding.of_step(place, 6).commit(a_manifest(StoredFile("worker-0.state", 1, "00" * 32)))
    assert [found.name for found in place.complete()] == ["step-000000005"]


def test_a_commit_whose_answer_is_lost_is_one(s3_server: S3Server, place: ObjectFolder) -> None:
    lost: list[str] = []

    def lose(_: int, method: str, path: str) -> int | None:
        if method == "PUT" and path.endswith("checkpoint.json") and not lost:
            lost.append(path)
            return 503
        return None

    with proxy(s3_server, nothing, lose) as it, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", it.endpoint)
        root = ObjectFolder(f"s3://{s3_server.bucket()}/digits", patience=0.0)
        finding.of_step(root, 5).commit(a_manifest())
        assert [found.name for found in root.complete()] == ["step-000000005"]
    assert lost


REFUSALS = [
    ({"AWS_SECRET_ACCESS_KEY": "another"}, True, r"is not allowed \(403 SignatureDoesNotMatch\): let the environment's credentials"),
    ({"AWS_ACCESS_KEY_ID": "nobody"}, True, r"is refused \(404 XAdminUserNotFound\)"),
    ({}, False, "there is no such bucket: create it, or name another in spec.checkpoint.to"),
    (
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_METADATA_ENDPOINT": "http://127.0.0.1:1"}, True,
        "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod a service account",
    ),
    ({"AWS_ENDPOINT_URL": "nowhere"}, True, "AWS_ENDPOINT_URL is 'nowhere': write https://HOST:PORT"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "exists", "words"), REFUSALS)
def test_what_a_store_refuses_is_said_with_what_to_do(
    s3_server: S3Server, place: ObjectFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    changed: dict[str, str | None], exists: bool, words: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in changed.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    url = f"s3://{s3_server.bucket() if exists else f'none-{os.urandom(4).hex()}'}/some"
    for ask in (lambda it: it.complete(), lambda it: it.write("x", lambda path: path.touch()), lambda it: it.begin()):
        with pytest.raises(StoreRefused, match=words):
            ask(ObjectFolder(url))
    assert cli.main(["checkpoint", "list", url]) == cli.BAD_INPUT
    file = write(tmp_path, "", manifest([sys.executable, "train.py"], checkpoint={"everySteps": 1, "to": url}))
    assert cli.main(["run", str(file), "--run-dir", str(tmp_path / "run")]) == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert "spec.checkpoint.to: s3://" in told
    assert words.replace("\\", "") in told
    assert not (tmp_path / "run").exists()


def test_a_server_whose_certificate_is_trusted_by_name_is_used(
    s3_server: S3Server, place: ObjectFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert = s3.certificate(tmp_path)
    with s3.running(tmp_path, cert) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        with pytest.raises(StoreRefused, match="its certificate is not trusted: name a file"):
            ObjectFolder(f"s3://{server.bucket()}/digits").complete()
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        saved(ObjectFolder(f"s3://{server.bucket()}/digits", patience=0.0), 5)


@pytest.mark.parametrize("url", ["ftp://bucket/x", "s3://", "s3:///x", "s3://KEY:SECRET@bucket/x", "memory:///x"])
def test_what_is_no_place_of_checkpoints_is_said(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checkpoint", "list", url]) == cli.BAD_INPUT
    assert "is no place of checkpoints: write s3://BUCKET/PREFIX" in capsys.readouterr().err


def test_a_store_that_does_not_answer_is_tried_again_and_what_it_has_is_not_guessed(
    s3_server: S3Server,
    place: ObjectFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    away = threading.Event()
    monkeypatch.setattr(object_store, "LIBRARY_SECONDS", 0.0)
    with proxy(s3_server, lambda *_: 503 if away.is_set() else None) as it:
        monkeypatch.setenv("AWS_ENDPOINT_URL", it.endpoint)
        root = ObjectFolder(f"s3://{s3_server.bucket()}/digits", patience=0.0)
        saved(root, 5)
        away.set()
        for ask in (lambda: newest(root), root.complete, lambda: saved(root, 10), lambda: root.prune(1)):
            with pytest.raises(StoreUnreachable, match="the store answers 503"):
                ask()
        finding.of_step(root, 10).discard()
        writing = threading.Thread(target=lambda: saved(replace(root, patience=60.0), 15))
        writing.start()
        eventually(lambda: "the store answers 503; it is tried again for up to" in caplog.text)
        away.clear()
        writing.join(30)
        assert newest(root)[0].name == "step-000000015"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreUnreachable, match=r"the store cannot be reached \(Connection refused\)"):
        ObjectFolder(f"s3://{s3_server.bucket()}/digits", patience=0.0).complete()


def test_nothing_begins_beside_checkpoints_that_cannot_be_seen(
    place: ObjectFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(finding, "place_of", lambda url: ObjectFolder(url, patience=0.0))
    for resume in (None, NEWEST, f"{place}/test/step-000000004"):
        asked = launch(Role.SERVER, checkpoint={"everySteps": 1, "to": place.url}, resume=resume)
        with pytest.raises(StoreUnreachable, match="Connection refused") as caught:
            Beginning.of(asked)
        assert failure.describe(caught.value)["victim"], "it is started again"


def test_one_that_never_answers_is_left_with_ctrl_c(place: ObjectFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        told = os.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        asked = [sys.executable, "-P", "-m", "paceline.cli", "checkpoint", "list", place.url]
        with subprocess.Popen(asked, env=told) as process:
            silent.settimeout(60)
            connection, _ = silent.accept()  # it waits for the answer
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == cli.INTERRUPTED
            connection.close()
