"""The chart's own life, and the images."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.charts.test_chart import render
from tests.cluster import audit
from tests.cluster.conftest import (
    HOME,
    OWN,
    ROOT,
    SCRIPT,
    SETTINGS,
    SYSTEM,
    Trainings,
    container_of,
    example,
    helm,
    kubectl,
    training,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OWN_IMAGE = "registry.example.com/team/mine:1"


def test_helm_test_trains_for_real(cluster: None) -> None:
    helm("test")
    assert "Succeeded" in kubectl("get", "pod", "-n", SYSTEM, "paceline-test", "-o", "jsonpath={.status.phase}")
    assert "all workers have ended their scripts" in kubectl("logs", "-n", SYSTEM, "paceline-test")


def test_the_operators_image_is_small_and_confined(cluster: None) -> None:
    nodes = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    sizes = {name: i["sizeBytes"] for n in nodes for i in n["status"]["images"] for name in i["names"] or ()}
    (size,) = {s for name, s in sizes.items() if "paceline/operator" in name}
    assert size < 250_000_000
    shell = ("exec", "-n", SYSTEM, "deploy/paceline", "--")
    assert "No module named 'torch'" in kubectl(*shell, "python3", "-c", "import torch", check=False)
    assert kubectl(*shell, "id", "-u").strip() == "1000"
    for program in ("gcc", "cc", "ld"):
        assert not kubectl(*shell, "sh", "-c", f"command -v {program} || true").strip()


def test_an_image_of_ones_own_is_three_lines(trainings: Trainings, tmp_path: Path) -> None:
    if not OWN:
        pytest.skip("builds an image into the tests' own cluster")
    lines = re.search(r"```dockerfile\n(.*?)```", (ROOT / "docs/kubernetes.md").read_text(), re.S)
    assert lines is not None
    (tmp_path / "Dockerfile").write_text(lines[1])
    (tmp_path / "train.py").write_text(
        "import einops, torch, paceline\n"
        "model = torch.nn.Linear(4, 1)\n"
        "model, optimizer = paceline.distribute(model, torch.optim.SGD(model.parameters(), lr=0.1))\n"
        "for step in range(3):\n"
        "    optimizer.zero_grad(); model(torch.ones(2, 4)).sum().backward(); optimizer.step()\n"
        "print('einops', einops.__version__)\n"
    )
    build = ["buildah", "build", "--isolation", "chroot", "--layers", "-v", "/etc/ssl/certs:/etc/ssl/certs:ro"]
    build += ["-v", "/etc/pip.conf:/etc/pip.conf:ro"] if Path("/etc/pip.conf").exists() else []
    subprocess.run([*build, "-t", OWN_IMAGE, str(tmp_path)], check=True, timeout=300)
    archive = HOME / "own.tar"
    try:
        subprocess.run(["buildah", "push", "-q", OWN_IMAGE, f"docker-archive:{archive}:{OWN_IMAGE}"], check=True)
        subprocess.run([SCRIPT, "load", archive], check=True, timeout=400)
    finally:
        archive.unlink(missing_ok=True)
    manifest = training("mine", ["python", "train.py"], workers=2, strategy="Asynchronous")
    container_of(manifest)["image"] = OWN_IMAGE
    trainings.apply(manifest)
    status = trainings.wait("mine")
    assert status["phase"] == "Succeeded", status
    assert "einops" in trainings.kubectl("logs", "mine-worker-0")


def test_trainings_outlive_an_uninstallation(trainings: Trainings) -> None:
    trainings.apply(training("kept", ["sleep", "300"]))
    wait_for(lambda: trainings.pods("kept"), "pods")
    helm("uninstall")
    kinds = "all,rolebindings,roles,networkpolicies"
    gone = lambda: "No resources found" in kubectl("get", kinds, "-n", SYSTEM, "-l", "helm.sh/chart")  # noqa: E731
    wait_for(gone, "the operator to go", 60)
    assert trainings.pods("kept")
    helm("install", SETTINGS)
    trainings.kubectl("delete", "dt", "kept")
    wait_for(lambda: not trainings.pods("kept"), "the pods to go", 60)


ALONE = {**SETTINGS, "rbac": {"scope": "Namespace"}, "crds": {"enabled": False, "admissionPolicy": False}}


@pytest.fixture
def alone(trainings: Trainings) -> Iterator[Trainings]:
    """A namespace whose operator is its own; the one for all namespaces rests."""
    out = Trainings("paceline-alone")
    scale = ("scale", "-n", SYSTEM, "deploy/paceline", "--timeout=60s")
    try:
        kubectl(*scale, "--replicas=0")
        helm("install", ALONE, out.namespace)
        yield out
        helm("uninstall", namespace=out.namespace)
    finally:
        kubectl(*scale, "--replicas=1")
        kubectl("rollout", "status", "-n", SYSTEM, "deploy/paceline", "--timeout=90s")
        kubectl("delete", "namespace", out.namespace, "--wait=true", "--timeout=100s", limit=130)


def test_an_operator_of_one_namespace_needs_no_right_elsewhere(alone: Trainings, trainings: Trainings) -> None:
    trainings.apply(training("elsewhere", ["sleep", "1"]))
    alone.apply(training("here", ["python", "-c", "print('no training')"]))
    alone.apply(example("digits"))
    assert alone.wait("digits")["phase"] == "Succeeded"
    assert alone.wait("here")["phase"] == "Failed"
    assert (trainings.status("elsewhere"), trainings.pods("elsewhere")) == ({}, [])
    if OWN:
        granted = render(ALONE)
        used, forbidden = audit.asked(f"system:serviceaccount:{alone.namespace}:paceline", granted)
        assert forbidden == []
        assert used <= audit.granted(granted)
