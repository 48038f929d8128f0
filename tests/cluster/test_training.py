"""Real trainings in real pods: the same results as on one machine, and nothing left behind."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import IMAGE, SYSTEM, Trainings, container_of, example, kubectl, training, wait_for
from tests.cluster.test_trouble import documented

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
DIGITS = ["python", "-m", "paceline.examples.digits"]


def local_sha(manifest: dict[str, Any], folder: Path) -> str:
    file = folder / "local.yaml"
    file.write_text(yaml.safe_dump(manifest))
    command = [sys.executable, "-m", "paceline.cli", "run", str(file), "--run-dir", str(folder / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "run/result.json").read_text())["weights_sha256"]


def test_synchronous_pods_give_the_weights_of_a_local_run(trainings: Trainings, tmp_path: Path) -> None:
    manifest = example("digits")
    container_of(manifest)["command"] += ["--save", "weights.safetensors"]
    trainings.apply(manifest)
    status = trainings.wait("digits")
    assert (status["phase"], status["reason"]) == ("Succeeded", "TrainingSucceeded")
    assert status["reported"]["accuracy"] >= 0.97
    assert status["step"] == status["totalSteps"]
    log = trainings.kubectl("logs", "digits-worker-0")
    found = re.search(r"SHA-256 ([0-9a-f]{64})", log)
    assert found is not None, log
    assert found[1] == local_sha(manifest, tmp_path)
    wait_for(lambda: not trainings.pods("digits", "ps"), "the servers to be removed")
    assert len(trainings.pods("digits", "worker")) == 4, "finished workers stay for their logs"
    trainings.kubectl("delete", "dt", "digits")
    wait_for(lambda: nothing_left(trainings), "everything of the training to go")


def nothing_left(trainings: Trainings) -> bool:
    kinds = "pods,services,secrets,networkpolicies"
    return "No resources found" in trainings.kubectl("get", kinds, "-l", "paceline.dev/training")


def test_which_pods_are_left_is_for_the_user_to_say(trainings: Trainings) -> None:
    left = {"All": set(), "None": {"ps", "worker"}}  # what does not happen is looked for last
    for policy in left:
        trainings.apply(training(policy.lower(), [*DIGITS, "--epochs", "1"], cleanPodPolicy=policy))
    for policy, roles in left.items():
        name = policy.lower()
        assert trainings.wait(name)["phase"] == "Succeeded"
        wait_for(partial(has, trainings, name, roles), f"pods of {roles or 'nobody'}")


def has(trainings: Trainings, name: str, roles: set[str]) -> bool:
    return {p["metadata"]["labels"]["paceline.dev/role"] for p in trainings.pods(name)} == roles


@pytest.mark.parametrize(("name", "least"), [("digits-async", 0.9), ("digits-allreduce", 0.97)])
def test_other_modes_learn_digits(trainings: Trainings, name: str, least: float) -> None:
    trainings.apply(example(name))
    status = trainings.wait(name)
    assert status["phase"] == "Succeeded", status
    assert status["reported"]["accuracy"] >= least
    assert status["restarts"] == 0


def test_the_language_model_trains_as_with_the_local_runner(trainings: Trainings) -> None:
    manifest = example("language")
    container_of(manifest)["command"] += ["--steps", "10", "--save", "weights.safetensors"]
    trainings.apply(manifest)
    status = trainings.wait("language", 400)
    assert status["phase"] == "Succeeded", status
    found = re.search(r"SHA-256 ([0-9a-f]{64})", trainings.kubectl("logs", "language-worker-0"))
    assert found is not None
    assert found[1] in run_in_a_pod(trainings, manifest), "its text is the standard library of the image's Python"


def run_in_a_pod(trainings: Trainings, manifest: dict[str, Any]) -> str:
    """What `paceline run` prints in a pod of the same image."""
    trainings.kubectl("create", "configmap", "manifest", f"--from-literal=local.yaml={yaml.safe_dump(manifest)}")
    container = {
        "name": "run",
        "image": IMAGE,
        "command": ["paceline", "run", "/manifest/local.yaml"],
        "volumeMounts": [{"name": "manifest", "mountPath": "/manifest"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": "manifest", "configMap": {"name": "manifest"}}],
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    trainings.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "local"}, "spec": spec})
    trainings.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/local", "--timeout=240s", limit=250)
    return trainings.kubectl("logs", "local")


def delete(trainings: Trainings, pod: str) -> None:
    trainings.kubectl("delete", "pod", pod, "--wait=false")


def evict(trainings: Trainings, pod: str) -> None:
    """As `kubectl drain` does it."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    path = f"/api/v1/namespaces/{trainings.namespace}/pods/{pod}/eviction"
    trainings.kubectl("create", "--raw", path, "-f", "-", text=json.dumps(eviction))


@pytest.mark.parametrize(("take", "reason"), [(delete, "PodDeleted"), (evict, "Evicted")])
def test_a_worker_taken_from_an_asynchronous_training_is_replaced_alone(
    trainings: Trainings, take: Callable[[Trainings, str], None], reason: str
) -> None:
    manifest = training("replace", [*DIGITS, "--epochs", "60", "--lr", "0.02"], workers=3, strategy="Asynchronous")
    trainings.apply(manifest)
    wait_for(lambda: trainings.status("replace").get("step"), "the first steps", 120)
    before = {p["metadata"]["name"]: p["metadata"]["uid"] for p in trainings.pods("replace")}
    take(trainings, "replace-worker-1")
    status = trainings.wait("replace", 400)
    assert status["phase"] == "Succeeded", status
    assert (status["attempt"], status["restarts"]) == (0, 0)
    assert [(f["replica"], f["reason"]) for f in status["failures"]] == [("worker-1", reason)]
    after = {p["metadata"]["name"]: p["metadata"]["uid"] for p in trainings.pods("replace", "worker")}
    assert {n for n, uid in after.items() if before[n] != uid} == {"replace-worker-1"}


@pytest.mark.parametrize("strategy", ["Synchronous", "AllReduce"])
def test_a_deleted_worker_of_the_other_modes_restarts_everything(trainings: Trainings, strategy: str) -> None:
    trainings.apply(training("restart", [*DIGITS, "--epochs", "8"], workers=2, strategy=strategy))
    wait_for(lambda: trainings.status("restart").get("reason") == "Training", "training", 120)
    trainings.kubectl("delete", "pod", "restart-worker-1", "--wait=false")
    trainings.until("restart", attempt=1)
    status = trainings.wait("restart")
    assert status["phase"] == "Succeeded", status
    assert (status["attempt"], status["restarts"]) == (1, 0), "what the cluster does is not counted"


def test_the_operator_may_restart_at_any_moment(trainings: Trainings) -> None:
    trainings.apply(training("steady", [*DIGITS, "--epochs", "20"], workers=2))
    wait_for(lambda: len(trainings.pods("steady")) == 3, "the pods")
    kubectl("delete", "pod", "-n", SYSTEM, "-l", "app.kubernetes.io/name=paceline-operator")
    before = {p["metadata"]["uid"] for p in trainings.pods("steady", "worker")}
    status = trainings.wait("steady")
    assert status["phase"] == "Succeeded", status
    assert (status["attempt"], status["failures"]) == (0, [])
    assert {p["metadata"]["uid"] for p in trainings.pods("steady", "worker")} == before
    documented(trainings, "steady")
