"""What goes wrong, on a real cluster: what people then see says what happened and what to do.

Each message is in docs/troubleshooting.md, word for word but for names and numbers.
"""

import json
import re
from typing import Any

import pytest

from tests.cluster.conftest import (
    IMAGE,
    ROOT,
    SETTINGS,
    Trainings,
    container_of,
    helm,
    inside,
    kubectl,
    training,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
DIGITS = ["python", "-m", "paceline.examples.digits"]
SLEEP = ["sleep", "300"]


def documented(trainings: Trainings, name: str) -> None:
    """What a person sees of it is in the guide, and `kubectl describe` says it too, with an event."""
    status = trainings.status(name)
    explained(status)
    page = {shown(each) for each in (ROOT / "docs/troubleshooting.md").read_text().splitlines()}
    line = lambda: shown(trainings.kubectl("get", "dt", name, "--no-headers"))  # noqa: E731
    wait_for(lambda: line() in page, "a line of docs/troubleshooting.md when every pod has ended", 10)
    describe = lambda: " ".join(trainings.kubectl("describe", "dt", name).split())  # noqa: E731
    assert " ".join(status["message"].split()) in describe()
    wait_for(lambda: re.search(rf"Events: .*(Normal|Warning) {status['reason']} ", describe()), "the event", 10)


def explained(status: dict[str, Any]) -> None:
    """The reason has a section of the guide, and what is said stands there."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    text = " ".join(re.sub("^> ", "", page, flags=re.MULTILINE).split())
    assert f"`{status['reason']}`" in text, status["reason"]
    wanted = pattern(status["message"])
    assert re.search(wanted, text), f"docs/troubleshooting.md does not show: {status['message']}"


def shown(line: str) -> str:
    """A line of `kubectl get dt`, without its age, and without a step 0, which is there if somebody asked in time."""
    return re.sub(r"(?<=\d/\d) 0(?= )| (\d+m)?\d+s$", "", " ".join(line.split()))


def pattern(message: str) -> str:
    """The message with its numbers, names of namespaces and identifiers left open."""
    message = re.sub(r"-n \S+", "-n NAMESPACE", " ".join(message.split()))
    parts = re.split(r"(\d+|NAMESPACE)", re.escape(message))
    return "".join(r"\S+?" if p == "NAMESPACE" else r"\d+" if p.isdigit() else p for p in parts)


def test_a_script_that_fails_at_once(trainings: Trainings) -> None:
    script = "import paceline, torch; raise ValueError('no such data set: imagenet')"
    trainings.apply(training("broken", ["python", "-c", script], backoffLimit=1))
    status = trainings.wait("broken")
    assert (status["phase"], status["reason"], status["restarts"]) == ("Failed", "ExitCode", 2)
    documented(trainings, "broken")
    assert "no such data set" in trainings.kubectl("logs", "broken-worker-0"), "the failed pod stays"
    assert "BackoffLimit" in trainings.kubectl("describe", "dt", "broken").replace("backoffLimit", "BackoffLimit")


def test_an_error_in_training_is_told_with_its_message(trainings: Trainings) -> None:
    script = (
        "import torch, paceline; m = torch.nn.Linear(2, 2); o = torch.optim.SGD(m.parameters(), lr=1.0)\n"
        "m, o = paceline.distribute(m, o)\nraise RuntimeError('loss is nan')"
    )
    trainings.apply(training("nan", ["python", "-c", script], workers=2, backoffLimit=0))
    status = trainings.wait("nan")
    assert (status["phase"], status["reason"]) == ("Failed", "ScriptFailed")
    assert "RuntimeError: loss is nan" in status["message"]
    documented(trainings, "nan")


def test_a_script_that_fails_twice_and_then_works(trainings: Trainings) -> None:
    manifest = training("third", ["sh", "-c", f'test "$ATTEMPT" = 2 && exec {" ".join(DIGITS)} --epochs 1; exit 7'])
    label = {"fieldRef": {"fieldPath": "metadata.labels['paceline.dev/attempt']"}}
    container_of(manifest)["env"] = [{"name": "ATTEMPT", "valueFrom": label}]
    trainings.apply(manifest)
    trainings.until("third", 60, phase="Restarting")
    documented(trainings, "third")
    status = trainings.wait("third")
    assert (status["phase"], status["attempt"], status["restarts"]) == ("Succeeded", 2, 2)
    documented(trainings, "third")


def test_an_image_that_does_not_exist(trainings: Trainings) -> None:
    manifest = training("image", DIGITS)
    container_of(manifest)["image"] = "127.0.0.1:1/team/missing:1"  # refused at once, in the same words everywhere
    trainings.apply(manifest)
    both = "ps-0, worker-0: Back-off pulling image"  # between two tries, which is most of the time
    wait_for(lambda: trainings.status("image").get("message", "").startswith(both), "the reason", 30)
    documented(trainings, "image")


def test_a_pod_that_cannot_be_scheduled(trainings: Trainings) -> None:
    manifest = training("large", DIGITS, workers=2)
    container_of(manifest)["resources"] = {"requests": {"cpu": "500"}}
    trainings.apply(manifest)
    status = trainings.until("large", 30, reason="Unschedulable")
    assert "Insufficient cpu" in status["message"]
    documented(trainings, "large")


def test_a_volume_that_is_not_there(trainings: Trainings) -> None:
    manifest = training("volume", DIGITS)
    container_of(manifest)["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    manifest["spec"]["workers"]["template"]["spec"]["volumes"] = [{"name": "data", "configMap": {"name": "missing"}}]
    trainings.apply(manifest)
    status = trainings.until("volume", 30, reason="FailedMount")
    assert 'configmap "missing" not found' in status["message"]
    documented(trainings, "volume")


def test_an_init_container_that_fails(trainings: Trainings) -> None:
    manifest = training("fetch", DIGITS, backoffLimit=0)
    fetch = {"name": "fetch", "image": IMAGE, "command": ["sh", "-c", "exit 3"]}
    manifest["spec"]["workers"]["template"]["spec"]["initContainers"] = [fetch]
    trainings.apply(manifest)
    status = trainings.wait("fetch")
    assert (status["phase"], status["reason"]) == ("Failed", "InitContainerFailed")
    documented(trainings, "fetch")


def test_a_sidecar_that_runs_on(trainings: Trainings) -> None:
    manifest = training("sidecar", [*DIGITS, "--epochs", "1"], workers=2)
    pod = manifest["spec"]["workers"]["template"]["spec"]
    pod["containers"].append({"name": "proxy", "image": IMAGE, "command": SLEEP})
    pod["terminationGracePeriodSeconds"] = 1
    trainings.apply(manifest)
    assert trainings.wait("sidecar")["phase"] == "Succeeded"
    wait_for(lambda: not trainings.pods("sidecar"), "the pods, which still run, to be removed", 60)
    assert trainings.status("sidecar")["workers"]["summary"] == "2/2"


def test_a_name_that_is_taken(trainings: Trainings) -> None:
    trainings.kubectl("create", "service", "clusterip", "taken", "--tcp=80")
    trainings.apply(training("taken", SLEEP))
    trainings.until("taken", 30, reason="NameTaken")
    documented(trainings, "taken")
    header, row = trainings.kubectl("get", "dt", "taken").splitlines()
    page = (ROOT / "docs/kubernetes.md").read_text()
    assert header.split() == re.search(r"^NAME .*$", page, re.MULTILINE)[0].split()  # type: ignore[index]
    assert row.split()[:4] == ["taken", "Synchronous", "Pending", "0/1"]
    assert "NameTaken" in row
    service = json.loads(trainings.kubectl("get", "service", "taken", "-o", "json"))
    assert "ownerReferences" not in service["metadata"]
    trainings.kubectl("delete", "service", "taken")
    wait_for(lambda: trainings.pods("taken"), "the pods", 60)


def test_who_reaches_the_metrics_of_a_running_training_follows_the_chart(trainings: Trainings) -> None:
    trainings.apply(training("watched", SLEEP))
    wait_for(lambda: trainings.pods("watched"), "pods")
    peers = "jsonpath={.spec.ingress[1].from}"
    try:
        helm("upgrade", SETTINGS | {"metrics": {"from": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}]}})
        there = lambda: "prometheus" in trainings.kubectl("get", "networkpolicy", "watched", "-o", peers)  # noqa: E731
        wait_for(there, "the new peer", 60)
    finally:
        helm("upgrade", SETTINGS)


def test_a_worker_that_runs_out_of_memory(trainings: Trainings) -> None:
    manifest = training("memory", ["python", "-c", "x = b'1' * (1 << 30)"], backoffLimit=0)
    container_of(manifest)["resources"] = {"limits": {"memory": "64Mi"}}
    trainings.apply(manifest)
    status = trainings.wait("memory")
    assert (status["phase"], status["reason"]) == ("Failed", "OutOfMemory")
    documented(trainings, "memory")


def test_a_program_that_is_not_in_the_image(trainings: Trainings) -> None:
    trainings.apply(training("typo", ["pyhton", "train.py"], backoffLimit=0))
    status = trainings.wait("typo")
    assert (status["phase"], status["reason"]) == ("Failed", "ExitCode")
    assert "exit code 127" in status["message"]
    assert "cannot run pyhton" in trainings.kubectl("logs", "typo-worker-0")
    documented(trainings, "typo")


def test_a_script_that_never_joins(trainings: Trainings) -> None:
    trainings.apply(training("alone", ["true"]))
    status = trainings.wait("alone")
    assert (status["phase"], status["reason"]) == ("Failed", "NeverJoined")
    documented(trainings, "alone")


def test_a_deadline_that_passes(trainings: Trainings) -> None:
    trainings.apply(training("late", SLEEP, activeDeadlineSeconds=5))
    status = trainings.wait("late", 60)
    assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded")
    wait_for(lambda: not trainings.pods("late"), "the running pods to be removed", 60)
    wait_for(lambda: trainings.status("late")["workers"]["summary"] == "0/1", "the worker not to be counted", 15)
    documented(trainings, "late")


def test_a_training_that_is_suspended_and_resumed(trainings: Trainings) -> None:
    trainings.apply(training("pause", [*DIGITS, "--epochs", "2"], suspend=True))
    trainings.until("pause", phase="Suspended")
    documented(trainings, "pause")
    assert trainings.pods("pause") == []
    suspend(trainings, "pause", False)
    wait_for(lambda: trainings.pods("pause"), "pods")
    suspend(trainings, "pause", True)
    wait_for(lambda: not trainings.pods("pause"), "the pods to go", 60)
    suspend(trainings, "pause", False)
    assert trainings.wait("pause")["phase"] == "Succeeded"


def suspend(trainings: Trainings, name: str, value: bool) -> None:
    patch = json.dumps({"spec": {"runPolicy": {"suspend": value}}})
    trainings.kubectl("patch", "dt", name, "--type=merge", "-p", patch)


def test_a_finished_training_is_deleted_after_its_time(trainings: Trainings) -> None:
    trainings.apply(training("short", [*DIGITS, "--epochs", "1"], ttlSecondsAfterFinished=10))
    trainings.wait("short")
    documented(trainings, "short")
    wait_for(lambda: "not found" in trainings.kubectl("get", "dt", "short", check=False), "its deletion", 30)
    wait_for(lambda: not trainings.pods("short"), "its pods to go", 60)


def test_a_running_training_takes_a_new_deadline(trainings: Trainings) -> None:
    trainings.apply(training("soon", SLEEP))
    wait_for(lambda: trainings.pods("soon"), "pods")
    trainings.kubectl("patch", "dt", "soon", "--type=merge", "-p", '{"spec":{"runPolicy":{"activeDeadlineSeconds":1}}}')
    assert trainings.wait("soon", 60)["reason"] == "DeadlineExceeded"


def test_a_training_that_another_controller_manages_is_left_alone(trainings: Trainings) -> None:
    trainings.apply(training("other", SLEEP, managedBy="example.com/queue"))
    trainings.apply(training("ours", SLEEP))
    wait_for(lambda: trainings.pods("ours"), "the pods of one that is its own")
    assert trainings.status("other") == {}
    assert trainings.pods("other") == []


def test_what_only_the_operator_can_find_wrong_is_told_and_can_be_seen(trainings: Trainings) -> None:
    manifest = training("reserved", SLEEP)
    container_of(manifest)["env"] = [{"name": "PACELINE_ROLE", "value": "boss"}]
    trainings.apply(manifest)
    status = trainings.wait("reserved", 30)
    assert status["reason"] == "InvalidSpec"
    documented(trainings, "reserved")
    manifest = training("bad-pod", SLEEP)
    manifest["spec"]["workers"]["template"]["spec"]["priorityClassName"] = "no-such-class"
    trainings.apply(manifest)
    wait_for(lambda: trainings.status("bad-pod").get("reason") in ("PodRefused", "InvalidSpec"), "a condition", 30)
    assert "no-such-class" in trainings.status("bad-pod")["message"]
    documented(trainings, "bad-pod")


def test_gpus_are_passed_on_counted_and_waited_for(trainings: Trainings) -> None:
    node = kubectl("get", "nodes", "-o", "name").split()[0]
    patch = '[{"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": "8"}]'
    kubectl("patch", node, "--subresource=status", "--type=json", "-p", patch)
    try:
        free = "jsonpath={.status.allocatable.nvidia\\.com/gpu}"  # the kubelet works it out from the capacity
        wait_for(lambda: kubectl("get", node, "-o", free).strip() == "8", "GPUs that can be had", 60)
        manifest = training("gpus", SLEEP, workers=9)
        container_of(manifest)["resources"] = {"limits": {"nvidia.com/gpu": 1}}
        trainings.apply(manifest)
        only_one = re.compile(r"^worker-\d: .*Insufficient nvidia.com/gpu")
        told = lambda: only_one.search(trainings.status("gpus").get("message", ""))  # noqa: E731
        wait_for(told, "the ninth alone to wait", 60)
        wait_for(lambda: trainings.status("gpus")["workers"]["summary"] == "8/9", "the others to run", 60)
        documented(trainings, "gpus")
        trainings.kubectl("delete", "dt", "gpus", "--cascade=foreground", "--timeout=60s")
        check = 'echo "ranks $PACELINE_ORDINAL $LOCAL_RANK $CUDA_VISIBLE_DEVICES"; df -m /dev/shm | tail -1'
        manifest = training("pairs", ["sh", "-c", check], workers=2)
        container_of(manifest)["resources"] = {"limits": {"nvidia.com/gpu": 2}}
        trainings.apply(manifest)
        trainings.wait("pairs", 150)
        lines = trainings.kubectl("logs", "pairs-worker-1").splitlines()
        assert sorted(line for line in lines if "ranks" in line) == ["ranks 2 0 0", "ranks 3 1 1"]
    finally:
        patch = '[{"op": "remove", "path": "/status/capacity/nvidia.com~1gpu"}]'
        kubectl("patch", node, "--subresource=status", "--type=json", "-p", patch)


def test_a_pod_that_hangs_on_a_lost_node_is_deleted_by_force(trainings: Trainings) -> None:
    import subprocess

    from tests.cluster.conftest import OWN

    if not OWN:
        pytest.skip("stops the kubelet, which is done only to the tests' own cluster")
    trainings.apply(training("hang", SLEEP, strategy="Asynchronous"))
    wait_for(lambda: any(p["status"]["phase"] == "Running" for p in trainings.pods("hang", "worker")), "a worker")
    old = trainings.pods("hang", "worker")[0]["metadata"]["uid"]
    subprocess.run(inside("pkill", "-STOP", "-x", "kubelet"), check=True)
    try:
        trainings.kubectl("delete", "pod", "hang-worker-0", "--wait=false", "--grace-period=1")
        wait_for(lambda: all(p["metadata"]["uid"] != old for p in trainings.pods("hang", "worker")), "its end", 60)
    finally:
        subprocess.run(inside("pkill", "-CONT", "-x", "kubelet"), check=True)
