"""`paceline top` and `paceline trace` on a cluster: the real kubectl asks a server that answers as the API does."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from paceline import cli

from .conftest import manifest
from .made import Pages, a_trace, events, serving, straggling

RESOURCE = "/apis/paceline.dev/v1alpha1/namespaces/team/distributedtrainings/digits"
POD = "/api/v1/namespaces/team/pods/digits-{}/proxy/{}"
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def api_error(code: int, reason: str, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}


def a_resource(spec: dict[str, Any] | None = None, **found: Any) -> tuple[int, dict[str, Any]]:
    asked = manifest(["python", "train.py"], workers=4)
    usual = {"phase": "Running", "message": "all workers train", "step": 90, "progress": "27%", "loss": 0.25}
    resource = {
        **asked,
        "metadata": {"name": "digits", "namespace": "team", "uid": "1", "managedFields": []},
        "spec": asked["spec"] | (spec or {}),
        "status": usual | found,
    }
    return 200, resource


@contextmanager
def a_cluster(pages: Pages, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with serving(pages) as address:
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "c", "cluster": {"server": address}}], "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        }  # fmt: skip
        (folder / "kubeconfig").write_text(json.dumps(config))
        monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.chdir(folder)
        yield


@needs_kubectl
@pytest.mark.parametrize("ring", [False, True])
def test_a_training_in_the_cluster_is_found_by_its_name(
    ring: bool, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    spec = {"topology": "AllReduce", "parameterServer": None} if ring else {}
    spent = {"productiveSeconds": 60.0, "lostSeconds": {"pending": 30.0, "restart": 10.0}, "ratio": 0.6}
    pod = POD.format(f"{'coordinator' if ring else 'ps'}-0:9090", "status")
    pages = {RESOURCE: a_resource(spec, goodput=spent), pod: (200, straggling())}
    with a_cluster(pages, tmp_path, monkeypatch):
        assert cli.main(["top", "digits"]) == 0
    text = capsys.readouterr().out
    assert "digits  Running" in text
    assert "team/digits" in text
    assert "goodput 60% of 100.0 s, lost to pending 30.0 s, restart 10.0 s" in text  # of all attempts: the operator's
    assert "worker-2 makes the others wait" in text


NO_POD = api_error(404, "NotFound", 'pods "digits-ps-0" not found')
REFUSED = api_error(
    503, "ServiceUnavailable", "error trying to reach service: dial tcp 10.0.0.1:9090: connect: refused"
)
TIMEOUT = api_error(503, "ServiceUnavailable", "error trying to reach service: dial tcp 10.0.0.1:9090: i/o timeout")
FORBIDDEN = api_error(403, "Forbidden", 'pods "digits-ps-0:9090" is forbidden: User "bob" cannot get pods/proxy')
PENDING = a_resource(phase="Pending", message="0 of 5 pods have started", step=None, progress=None, loss=None)


@needs_kubectl
@pytest.mark.parametrize(
    ("resource", "pod", "code", "message"),
    [
        (api_error(404, "NotFound", 'distributedtrainings.paceline.dev "digits" not found'), None, 2,
         "there is no training digits in namespace team, and no run folder of that name"),
        (None, None, 2, "team/digits: the cluster does not know paceline.dev/v1alpha1: install Paceline's chart"),
        (api_error(403, "Forbidden", 'User "bob" cannot get'), None, 2,
         'team/digits: the right to get distributedtrainings.paceline.dev is missing (User "bob" cannot get)'),
        (a_resource(), FORBIDDEN, 2, "but the right to get pods/proxy in namespace team is missing"),
        (PENDING, NO_POD, 0, "0 of 5 pods have started; no table, because the pod digits-ps-0 is not there"),
        (a_resource(), REFUSED, 0, "no table, because digits-ps-0 does not answer (error trying to reach service"),
        (a_resource(), TIMEOUT, 0, "the API server cannot reach digits-ps-0"),
        (a_resource(), (404, "/metrics"), 0, "digits-ps-0 has no such page: it runs an older version of Paceline"),
        (a_resource(), (200, {"a": 1}), 2, "digits-ps-0: answered something that is no status"),
        (a_resource(phase="Failed", message="worker-1: out of memory"), None, 0,
         "worker-1: out of memory, step 90, 27%, loss 0.2500"),
        (a_resource(status="x", phase=3), None, 2, "team/digits: its status cannot be read"),
    ],
)  # fmt: skip
def test_what_the_cluster_refuses_is_explained(
    resource: Any, pod: Any, code: int, message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    pages = {path: page for path, page in ((RESOURCE, resource), (POD.format("ps-0:9090", "status"), pod)) if page}
    with a_cluster(pages, tmp_path, monkeypatch):
        assert cli.main(["top", "digits", "-n", "team"]) == code
    out, err = capsys.readouterr()
    assert message in " ".join((err if code else out).split())
    assert "Traceback" not in out + err


@needs_kubectl
def test_a_cluster_that_is_away_is_a_sentence(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    with a_cluster({}, tmp_path, monkeypatch):
        pass
    assert cli.main(["top", "digits"]) == 2
    assert capsys.readouterr().err.startswith("team/digits: kubectl: The connection to the server 127.0.0.1:")


@needs_kubectl
def test_a_trace_of_the_cluster_asks_each_process_of_each_pod(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    workers = manifest(["python", "train.py"], workers=2)["spec"]["workers"] | {"processesPerReplica": 2}
    pages = {RESOURCE: a_resource({"workers": workers})}
    for pod, replica in (
        ("ps-0:9090", "ps-0"),
        ("worker-0:9090", "worker-0"),
        ("worker-0:9091", "worker-1"),
        ("worker-1:9090", "worker-2"),
    ):
        pages[POD.format(pod, "trace")] = (200, a_trace(replica))
    with a_cluster(pages, tmp_path, monkeypatch):
        assert cli.main(["trace", "digits"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("digits-trace.json: 4 processes, ")
    assert err.startswith("left out: worker-3: ")  # its page is not there: the others are written all the same
    names = [e["args"]["name"] for e in events(tmp_path / "digits-trace.json") if e["name"] == "process_name"]
    assert names == ["ps-0", "worker-0", "worker-1", "worker-2"]


@needs_kubectl
def test_a_training_that_has_ended_has_no_trace(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    with a_cluster({RESOURCE: a_resource(phase="Succeeded")}, tmp_path, monkeypatch):
        assert cli.main(["trace", "digits"]) == 2
    assert "team/digits: has ended (Succeeded)" in capsys.readouterr().err
