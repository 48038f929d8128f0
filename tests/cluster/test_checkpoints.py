"""Trainings that save checkpoints on a volume: what is taken away in the middle goes on, to the same weights."""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import HOME, OWN, ROOT, Trainings, container_of, example, kubectl, wait_for
from tests.cluster.test_training import evict, local_sha
from tests.cluster.test_trouble import explained

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAME = "digits-checkpoint"
_UNDISTURBED: dict[str, str] = {}


@pytest.fixture
def volume(trainings: Trainings) -> Any:
    """The claim of the example; the tests' own cluster has no provisioner, so its volume is a folder of the node."""
    claim = yaml.safe_load((ROOT / "manifests/examples/volumes/checkpoints.yaml").read_text())
    if OWN:
        folder = tempfile.mkdtemp(dir=HOME / "state")
        kubectl("apply", "-f", "-", text=yaml.safe_dump(a_volume(trainings.namespace, folder)))
        claim["spec"] |= {"storageClassName": "", "volumeName": trainings.namespace}
    trainings.apply(claim)
    yield
    if OWN:
        trainings.kubectl("delete", "dt", "--all", "--cascade=foreground", "--timeout=60s")
        trainings.kubectl("delete", "pvc", "--all", "--timeout=60s")
        kubectl("delete", "pv", trainings.namespace, "--timeout=60s")


def a_volume(name: str, folder: str) -> dict[str, Any]:
    node = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node0"]}
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "local": {"path": folder},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [node]}]}},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def a_training(epochs: int, steps: int, **checkpoint: Any) -> dict[str, Any]:
    """The example with two workers, and its weights' SHA-256 in the log."""
    manifest = example(NAME)
    manifest["spec"]["workers"]["replicas"] = 2
    container_of(manifest)["command"] += ["--epochs", str(epochs), "--save", "weights.safetensors"]
    manifest["spec"]["checkpoint"] |= {"everySteps": steps} | checkpoint
    return manifest


def undisturbed(manifest: dict[str, Any], folder: Path) -> str:
    """The SHA-256 of the weights of a run on this machine that nothing happens to; run once for each training."""
    plain = manifest | {"spec": {k: v for k, v in manifest["spec"].items() if k != "checkpoint"}}
    key = json.dumps(plain, sort_keys=True)
    if key not in _UNDISTURBED:
        _UNDISTURBED[key] = local_sha(plain, folder)
    return _UNDISTURBED[key]


def sha(trainings: Trainings) -> str:
    log = trainings.kubectl("logs", f"{NAME}-worker-0")
    found = re.search(r"SHA-256 ([0-9a-f]{64})", log)
    assert found is not None, log
    return found[1]


def saved(trainings: Trainings) -> int:
    return int(trainings.status(NAME).get("checkpoint", {}).get("step", 0))


def restarts(trainings: Trainings) -> list[str]:
    """What was said when the training restarted."""
    about = f"involvedObject.name={NAME},reason=PodDeleted"
    events = json.loads(trainings.kubectl("get", "events", "--field-selector", about, "-o", "json"))["items"]
    return [e["message"] for e in events]


def test_a_server_that_is_taken_in_the_middle_goes_on_to_the_same_weights(
    trainings: Trainings, volume: None, tmp_path: Path
) -> None:
    pod = "ps-0"
    manifest = a_training(epochs=40, steps=40, resume="Never")
    trainings.apply(manifest)
    before = wait_for(lambda: saved(trainings), "a checkpoint", 180)
    trainings.kubectl("delete", "pod", f"{NAME}-{pod}", "--wait=false")
    trainings.until(NAME, attempt=1)
    status = trainings.wait(NAME, 500)
    assert status["phase"] == "Succeeded", status
    assert (status["attempt"], status["restarts"]) == (1, 0)
    went_on = status["checkpoint"]["resumedFrom"]
    assert before <= went_on < status["totalSteps"] == status["step"]
    (said,) = restarts(trainings)
    assert f"{pod}: its pod was deleted. The training goes on from the checkpoint of step" in said
    explained({"reason": "PodDeleted", "message": said.replace(pod, "ps-1")})
    assert "resumed" not in trainings.kubectl("logs", f"{NAME}-worker-0")
    assert sha(trainings) == undisturbed(manifest, tmp_path)


def killed(trainings: Trainings) -> None:
    """As when its memory is exhausted: its script, by a signal, and not its first process."""
    script = "import os, signal; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), signal.SIGKILL)"
    trainings.kubectl("exec", f"{NAME}-worker-1", "--", "python", "-c", script)


def taken_by_a_user(trainings: Trainings) -> None:
    trainings.kubectl("delete", "pod", f"{NAME}-worker-1", "--wait=false")


@pytest.mark.parametrize(("take", "counted"), [(taken_by_a_user, 0), (killed, 1)])
def test_a_worker_that_is_taken_goes_on_where_it_was(
    trainings: Trainings, volume: None, tmp_path: Path, take: Callable[[Trainings], None], counted: int
) -> None:
    manifest = a_training(epochs=40, steps=100_000, resume="Never")
    trainings.apply(manifest)
    wait_for(lambda: trainings.status(NAME).get("step", 0) > 3, "the first steps", 180)
    before = {p["metadata"]["name"]: p["metadata"]["uid"] for p in trainings.pods(NAME)}
    take(trainings)
    status = trainings.wait(NAME, 500)
    assert status["phase"] == "Succeeded", status
    assert (status["attempt"], status["restarts"]) == (0, counted)
    assert status["step"] == status["totalSteps"]
    after = {p["metadata"]["name"]: p["metadata"]["uid"] for p in trainings.pods(NAME, "worker")}
    assert {n for n, uid in after.items() if before[n] != uid} == {f"{NAME}-worker-1"}
    assert sha(trainings) == undisturbed(manifest, tmp_path)


def drained(trainings: Trainings) -> None:
    """All pods of a node, as `kubectl drain` takes them; the cordon would keep the next ones off the only node."""
    for pod in trainings.pods(NAME):
        evict(trainings, pod["metadata"]["name"])


def test_what_is_told_to_end_saves_first(trainings: Trainings, volume: None, tmp_path: Path) -> None:
    manifest = a_training(epochs=160, steps=100_000, resume="Never")  # none but because of the signal
    trainings.apply(manifest)
    before = wait_for(lambda: trainings.status(NAME).get("step", 0), "a step", 180)
    drained(trainings)
    trainings.until(NAME, attempt=1)
    status = trainings.wait(NAME, 500)
    assert status["phase"] == "Succeeded", status
    assert (status["attempt"], status["restarts"]) == (1, 0)
    assert before <= status["checkpoint"]["resumedFrom"] < status["totalSteps"] == status["step"]
    assert sha(trainings) == undisturbed(manifest, tmp_path)


def test_a_suspended_training_goes_on_from_its_checkpoint(trainings: Trainings, volume: None, tmp_path: Path) -> None:
    manifest = a_training(epochs=40, steps=40, resume="Never")
    trainings.apply(manifest)
    before = wait_for(lambda: saved(trainings), "a checkpoint", 180)
    suspend(trainings, True)
    status = trainings.until(NAME, phase="Suspended")
    assert f"which goes on from the checkpoint of step {status['checkpoint']['step']}" in status["message"]
    explained(status)
    wait_for(lambda: not trainings.pods(NAME), "the pods to go", 60)
    suspend(trainings, False)
    status = trainings.wait(NAME, 500)
    assert status["phase"] == "Succeeded", status
    assert status["checkpoint"]["resumedFrom"] >= before
    assert sha(trainings) == undisturbed(manifest, tmp_path)


def suspend(trainings: Trainings, value: bool) -> None:
    patch = json.dumps({"spec": {"runPolicy": {"suspend": value}}})
    trainings.kubectl("patch", "dt", NAME, "--type=merge", "-p", patch)


def test_a_new_training_of_the_name_goes_on_if_it_is_asked_to_and_else_keeps_its_hands_off(
    trainings: Trainings, volume: None, tmp_path: Path
) -> None:
    manifest = a_training(epochs=8, steps=50)
    trainings.apply(manifest)
    first = trainings.wait(NAME, 400)
    assert first["phase"] == "Succeeded", first
    assert "resumedFrom" not in first["checkpoint"], "there was nothing to go on from"
    wanted = undisturbed(manifest, tmp_path)
    assert sha(trainings) == wanted
    again(trainings, a_training(epochs=8, steps=50, resume="Never"))
    refused = trainings.wait(NAME, 400)
    assert (refused["phase"], refused["reason"]) == ("Failed", "ScriptFailed")
    assert f"/checkpoints/{NAME} has checkpoints of another run" in refused["message"]
    explained(refused)
    again(trainings, manifest)
    status = trainings.wait(NAME, 400)
    assert status["phase"] == "Succeeded", status
    assert status["checkpoint"]["resumedFrom"] == first["checkpoint"]["step"] > 0
    assert sha(trainings) == wanted
    again(trainings, a_training(epochs=12, steps=50))
    longer = trainings.wait(NAME, 400)
    assert longer["phase"] == "Succeeded", longer
    assert longer["step"] == longer["totalSteps"] > status["step"]


def again(trainings: Trainings, manifest: dict[str, Any]) -> None:
    trainings.kubectl("delete", "dt", NAME, "--cascade=foreground", "--timeout=60s")
    trainings.apply(manifest)


def test_a_folder_that_is_on_no_volume_is_refused_in_words(trainings: Trainings) -> None:
    manifest = example(NAME)
    del manifest["spec"]["parameterServer"]["template"]
    trainings.apply(manifest)
    status = trainings.wait(NAME, 30)
    assert (status["phase"], status["reason"]) == ("Failed", "InvalidSpec")
    explained(status)
