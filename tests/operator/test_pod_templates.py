"""Pod templates as people write them: what Kubernetes takes works, and what is wrong is said, once."""

import asyncio
from fractions import Fraction
from typing import Any

import pytest
from kubernetes.aio import client

from paceline_core.launch import Role
from paceline_operator.kubernetes_api.cluster import ObjectRefused
from paceline_operator.objects import pods, quantity
from tests.operator.api import Api, Operator, run
from tests.operator.builders import a_spec, a_subject

TEMPLATE = "workers.template"
CONTAINER = {"name": "trainer", "image": "example/image:1", "command": ["python", "train.py"]}


def looked_at(path: str, value: Any) -> tuple[Api, dict[str, Any]]:
    """What the operator makes of a training with one field changed; `container.x` is a field of the trainer's."""
    found: list[tuple[Api, dict[str, Any]]] = []

    async def test(api: Api, server: client.ApiClient) -> None:
        api.create()
        if path.startswith("container."):
            api.change(f"{TEMPLATE}.spec.containers", [CONTAINER | {path.removeprefix("container."): value}])
        else:
            api.change(path, value)
        await Operator(server).reconcile()
        found.append((api, api.status()))

    run(test)
    return found[0]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{TEMPLATE}.metadata", {"labels": None}),
        (f"{TEMPLATE}.metadata", {"annotations": None}),
        (f"{TEMPLATE}.metadata", None),
        (f"{TEMPLATE}.spec.securityContext", None),
        (f"{TEMPLATE}.spec.volumes", None),
        (f"{TEMPLATE}.spec.initContainers", None),
        (f"{TEMPLATE}.spec.initContainers", [{"name": "a", "image": "b", "securityContext": None}]),
        (f"{TEMPLATE}.spec.nodeSelector", None),
        ("container.resources", None),
        ("container.resources", {"limits": None}),
        ("container.resources", {"limits": {"cpu": None}}),
        ("container.resources", {"limits": {"cpu": "8000000u"}}),
        ("container.resources", {"limits": {"cpu": "1e1", "memory": "1.5Gi"}}),
        ("container.volumeMounts", None),
        ("container.ports", None),
        ("container.env", None),
        ("container.env", [{"name": "A", "value": None}]),
        ("container.securityContext", None),
        ("parameterServer.template", None),
        ("parameterServer.template", {"metadata": None, "spec": {"containers": [{"name": "server"}]}}),
        ("runPolicy", None),
    ],
)
def test_what_kubernetes_takes_works(path: str, value: Any) -> None:
    api, status = looked_at(path, value)
    assert status["reason"] == "PodsStarting"
    assert sorted(api.pods) == ["digits-ps-0", "digits-worker-0", "digits-worker-1"]
    assert "None" not in str([p["spec"] for p in api.pods.values()])


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "container.resources",
            {"limits": {"cpu": "4 cores"}},
            "spec.workers.template.spec.containers[trainer].resources.limits.cpu: '4 cores' is not a quantity, such as",
        ),
        ("container.resources", {"limits": {"cpu": "1e999999999"}}, "resources.limits.cpu: '1e999999999' is not a"),
        ("container.resources", [1], "resources is [1], and must be a mapping"),
        ("container.volumeMounts", "data", "a pod template cannot be read"),
        ("container.volumeMounts", [None], "a pod template cannot be read"),
        ("container.securityContext", "root", "a pod template cannot be read"),
        (f"{TEMPLATE}.spec.securityContext", [1], "a pod template cannot be read"),
        (f"{TEMPLATE}.spec.initContainers", ["x"], "a pod template cannot be read"),
        (f"{TEMPLATE}.metadata", {"labels": ["a"]}, "a pod template cannot be read"),
        (
            "parameterServer.template",
            {"spec": {"containers": [{"name": "server", "volumeMounts": 3}]}},
            "a pod template cannot be read",
        ),
    ],
)
def test_what_is_wrong_is_said(path: str, value: Any, said: str) -> None:
    api, status = looked_at(path, value)
    assert (status["phase"], status["reason"]) == ("Failed", "InvalidSpec")
    assert said in status["message"]
    assert api.pods == {}


@pytest.mark.parametrize(
    ("refusal", "phase", "reason"),
    [
        ((422, "Invalid", "spec.containers[0].volumeMounts[0].mountPath: Required value"), "Failed", "InvalidSpec"),
        ((400, "BadRequest", "json: cannot unmarshal string"), "Failed", "InvalidSpec"),
        ((403, "Forbidden", "exceeded quota: pods"), "Pending", "PodRefused"),
        ((500, "InternalError", "failed calling webhook: connection refused"), "Pending", "PodRefused"),
        ((503, "ServiceUnavailable", "try later"), "Pending", "PodRefused"),
        ((429, "TooManyRequests", "too many requests"), "Pending", "PodRefused"),
        ((418, "Teapot", 'admission webhook "a" denied the request: no'), "Pending", "PodRefused"),
        ((400, "BadRequest", 'admission webhook "a" denied the request: no'), "Pending", "PodRefused"),
        ((409, "Conflict", 'admission webhook "a" denied the request: no'), "Pending", "PodRefused"),
        (
            (422, "Invalid", "pods is forbidden: ValidatingAdmissionPolicy 'a' with binding 'b' denied request: no"),
            "Pending",
            "PodRefused",
        ),
    ],
)
def test_a_pod_that_is_refused_is_asked_for_again_unless_it_is_wrong(
    refusal: tuple[int, str, str], phase: str, reason: str
) -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        api.refusals["pods"] = refusal
        await operator.reconcile()
        assert (api.status()["phase"], api.status()["reason"]) == (phase, reason)
        assert refusal[2] in api.status()["message"]
        api.refusals.clear()
        await operator.reconcile()
        assert bool(api.pods) == (phase == "Pending")

    run(test)


def test_of_several_refusals_the_first_pods_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(pod: dict[str, Any]) -> bool:
        name = pod["metadata"]["name"]
        if name == "digits-ps-0":
            await asyncio.sleep(0.05)  # the others are refused before it
        raise ObjectRefused("PodRefused", f"no {name}")

    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        monkeypatch.setattr(operator.cluster, "create_pod", refuse)
        await operator.reconcile()
        assert api.status()["message"] == "no digits-ps-0"

    run(test)


def test_a_quota_that_others_use_at_the_same_time_is_no_refusal() -> None:
    async def test(api: Api, found: client.ApiClient) -> None:
        operator = Operator(found)
        api.create()
        api.refusals["pods"] = (409, "Conflict", "Operation cannot be fulfilled on resourcequotas")
        await operator.reconcile()
        assert api.status() == {} or api.status()["reason"] == "PodsStarting"
        api.refusals.clear()
        await operator.reconcile()
        assert len(api.pods) == 3

    run(test)


@pytest.mark.parametrize(
    ("written", "means"),
    [
        (2, 2),
        (0.5, Fraction(1, 2)),
        ("2", 2),
        ("500m", Fraction(1, 2)),
        ("500000u", Fraction(1, 2)),
        ("5n", Fraction(5, 10**9)),
        (".5", Fraction(1, 2)),
        ("1.", 1),
        ("+3", 3),
        ("1e3", 1000),
        ("12E-1", Fraction(6, 5)),
        ("2E", 2 * 10**18),
        ("3k", 3000),
        ("1Mi", 2**20),
        (1e-05, Fraction(1, 10**5)),
    ],
)
def test_quantities(written: Any, means: Any) -> None:
    assert quantity.number(written) == means


@pytest.mark.parametrize(
    "wrong", ["", "m", "4 cores", " 1", "1 ", "1/2", "0x10", "1mm", "1e", "1e1000", True, None, "٣"]
)
def test_what_is_not_a_quantity(wrong: Any) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        quantity.number(wrong)


def worker_template() -> dict[str, Any]:
    """Everything that a worker may need."""
    raw = a_spec()
    raw["workers"]["template"]["metadata"] = {"labels": {"team": "vision"}}
    pod = raw["workers"]["template"]["spec"]
    pod |= {
        "imagePullSecrets": [{"name": "registry"}],
        "securityContext": {"runAsUser": 1001, "fsGroup": 1002},
        "serviceAccountName": "trainers",
        "priorityClassName": "high",
        "terminationGracePeriodSeconds": 120,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "nodeSelector": {"gpu": "h200", "kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux"},
        "affinity": {"nodeAffinity": {}},
        "runtimeClassName": "nvidia",
        "volumes": [{"name": "data", "emptyDir": {}}],
        "initContainers": [{"name": "fetch", "image": "x"}],
    }
    pod["containers"][0] |= {
        "imagePullPolicy": "Always",
        "securityContext": {"runAsUser": 1003, "capabilities": {"add": ["IPC_LOCK"]}},
        "resources": {"limits": {"nvidia.com/gpu": 1}},
        "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
    }
    return raw


def test_servers_inherit_what_it_takes_to_run_the_image_and_no_hardware() -> None:
    pod = pods.pod(a_subject(worker_template()), Role.SERVER, 0, 0, 0)
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["fsGroup"]) == (1001, 1002)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert (spec["serviceAccountName"], spec["priorityClassName"]) == ("trainers", "high")
    assert spec["automountServiceAccountToken"] is False
    assert spec["terminationGracePeriodSeconds"] == 120
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert spec["nodeSelector"] == {"kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux"}
    assert not {"affinity", "runtimeClassName", "initContainers"} & set(spec)
    assert "team" not in pod["metadata"]["labels"]
    assert (container["image"], container["imagePullPolicy"]) == ("example/image:1", "Always")
    security = container["securityContext"]
    assert (security["runAsUser"], security["capabilities"]) == (1003, {"drop": ["ALL"]})
    assert "resources" not in container
    assert "NCCL_DEBUG" not in [e["name"] for e in container["env"]]


def test_servers_with_a_template_of_their_own_inherit_the_image_alone() -> None:
    raw = worker_template()
    raw["parameterServer"]["template"] = {"spec": {"containers": [{"name": "server"}]}}
    spec = pods.pod(a_subject(raw), Role.SERVER, 0, 0, 0)["spec"]
    assert spec["containers"][0]["image"] == "example/image:1"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["terminationGracePeriodSeconds"] == 120
    raw["parameterServer"]["template"]["spec"]["terminationGracePeriodSeconds"] = 60
    assert pods.pod(a_subject(raw), Role.SERVER, 0, 0, 0)["spec"]["terminationGracePeriodSeconds"] == 60
    assert "runAsUser" not in spec["securityContext"]
    assert not {"tolerations", "nodeSelector", "priorityClassName", "serviceAccountName"} & set(spec)
