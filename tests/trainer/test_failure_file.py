"""The failure file: whatever happened, it fits into what Kubernetes keeps, and still says whose fault it was."""

import json
from pathlib import Path
from typing import Any

import pytest

from paceline import failure
from paceline_core.errors import PeerLost, UsageError

KEPT_BYTES = 4096  # of a termination message, by the kubelet
GLOO = "[../third_party/gloo/gloo/transport/tcp"


def told(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    assert len(data) <= KEPT_BYTES
    found: dict[str, Any] = json.loads(data)
    return found


def deep(error: Exception, depth: int) -> Exception:
    """The error as raised at the end of a long call chain."""

    def call(left: int) -> None:
        if left == 0:
            raise error
        if left % 2:  # two lines in turn, because a traceback counts equal ones instead of repeating them
            call(left - 1)
        call(left - 1)

    try:
        call(depth)
    except type(error) as raised:
        return raised
    raise AssertionError("it raises")


@pytest.mark.parametrize("depth", [0, 1, 300])
@pytest.mark.parametrize(
    "message",
    [
        "",
        "plain",
        "size mismatch for layers.0.weight; " * 400,
        '\n\t"quoted"\\' * 1000,
        "Größe, 大きさ, 🧮 " * 400,
        "\udcff" * 5000,  # of a file name that is not UTF-8
    ],
)
@pytest.mark.parametrize("kind", [ValueError, PeerLost])
def test_it_is_kept_whole(tmp_path: Path, kind: type[Exception], message: str, depth: int) -> None:
    error = deep(kind(message), depth)
    failure.write(error, str(tmp_path / "log"))
    found = told(tmp_path / "log")
    assert (found["kind"], found["victim"]) == (kind.__name__, kind is PeerLost)
    assert message.startswith(found["message"])
    if len(message) < 1000:
        assert found["message"] == message
        assert found["traceback"].rstrip().endswith(message.rstrip())
    else:
        assert KEPT_BYTES - (tmp_path / "log").stat().st_size < 12, "no more is cut than must be"


def test_the_traceback_goes_before_the_message(tmp_path: Path) -> None:
    message = "x" * 2900
    failure.write(deep(ValueError(message), 300), str(tmp_path / "log"))
    found = told(tmp_path / "log")
    assert found["message"] == message
    assert 900 < len(found["traceback"]) < 1200


def test_a_victim_does_not_write_over_the_reason_of_another_process_of_its_pod(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    failure.write(PeerLost("worker-1 was lost"), log)
    failure.write(UsageError("the reason"), log)
    failure.write(PeerLost("worker-1 was lost"), log)
    assert told(tmp_path / "log")["message"] == "the reason"


@pytest.mark.parametrize(
    ("text", "victim"),
    [
        (GLOO + "/pair.cc:547] Connection closed by peer [127.0.0.1]:8443", True),
        (GLOO + "/pair.cc:534] Read error [127.0.0.1]:52: Connection reset by peer", True),
        (GLOO + "/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete", True),
        ("Application timeout caused pair closure", True),  # of gloo, which leaves out its name here
        ("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE)", True),
        ("NCCL error: remote process exited or there was a network error, ncclRemoteError", True),
        ("NCCL communicator was aborted on rank 1.", True),
        ("Timed out waiting for the data set", False),
        ("NCCL error: invalid usage", False),
    ],
)
def test_who_could_not_reduce_because_of_another_is_a_victim(text: str, victim: bool) -> None:
    assert failure.describe(RuntimeError(text))["victim"] is victim


@pytest.mark.parametrize("length", [10, 150, 5000])
def test_a_summary_is_kept_whole(tmp_path: Path, length: int) -> None:
    reported = {f"{i} {'ä' * length}": 1.25 for i in range(20)}
    summary = {"step": 7, "version": 7, "loss": 0.5, "reported": reported, "verdict": None}
    failure.write_summary(summary, str(tmp_path / "log"))
    found = told(tmp_path / "log")["summary"]
    assert {**found, "reported": {}} == {**summary, "reported": {}}
    kept = len(found["reported"])
    assert found["reported"] == dict(list(reported.items())[:kept])
    assert kept == {10: 20, 150: 4, 5000: 0}[length]
