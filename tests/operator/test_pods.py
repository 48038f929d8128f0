"""The pods of a training, and what is beside them: what a pod is told, how it is confined, who reaches it."""

import json
import subprocess
import sys
from copy import deepcopy
from typing import Any

import pytest

from paceline_core.launch import Launch, Role, local_environments
from paceline_core.modes import MODES
from paceline_operator.objects import pods
from tests.operator.builders import UID, a_spec, a_subject

OPERATOR = "paceline-system"


def environment(pod: dict[str, Any], name: str = "trainer") -> dict[str, str]:
    container = next(c for c in pod["spec"]["containers"] if c["name"] == name)
    return {e["name"]: e["value"] for e in container["env"] if "value" in e}


@pytest.mark.parametrize("strategy", MODES)
def test_a_pod_is_told_what_the_launch_contract_asks_for(strategy: str) -> None:
    subject = a_subject(a_spec(strategy=strategy))
    pod = pods.pod(subject, Role.WORKER, 1, attempt=2, incarnation=7)
    launch = Launch.from_environment(environment(pod))
    assert launch is not None
    assert (launch.role, launch.ordinal, launch.incarnation) == (Role.WORKER, 1, 7)
    server = "coordinator" if strategy == "AllReduce" else "ps"
    assert launch.servers == (f"digits-{server}-0.digits.team.svc:7070",)
    assert launch.replaced == subject.spec.replaces_alone
    assert launch.training_id == pods.training_id(UID, 2) != pods.training_id(UID, 1)
    assert pod["spec"]["containers"][0]["command"][:4] == ["python", "-P", "-m", "paceline.entrypoint"]


@pytest.mark.parametrize(("role", "name"), [(Role.WORKER, "trainer"), (Role.SERVER, "server")])
def test_a_pod_listens_on_ipv4_and_ipv6_and_knows_its_node(role: Role, name: str) -> None:
    pod = pods.pod(a_subject(), role, 0, 0, 0)
    launch = Launch.from_environment(environment(pod, name))
    assert launch is not None
    assert (launch.listen, launch.metrics) == ("[::]:7070", "[::]:9090")
    named = {e["name"]: e for e in pod["spec"]["containers"][0]["env"]}
    assert named["PACELINE_NODE"] == {
        "name": "PACELINE_NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}},
    }  # fmt: skip


@pytest.mark.parametrize(("asked", "grace", "waits"), [(None, 30.0, 27.0), (120, 120.0, 117.0), (5, 5.0, 4.0)])
@pytest.mark.parametrize(("role", "name"), [(Role.WORKER, "trainer"), (Role.SERVER, "server")])
def test_a_pod_knows_how_long_it_may_take_to_end(
    role: Role, name: str, asked: int | None, grace: float, waits: float
) -> None:
    raw = a_spec()
    raw["workers"]["template"]["spec"] |= {} if asked is None else {"terminationGracePeriodSeconds": asked}
    launch = Launch.from_environment(environment(pods.pod(a_subject(raw), role, 0, 0, 0), name))
    assert launch is not None
    assert (launch.grace, launch.end_limit) == (grace, waits)


def test_builders_do_not_edit_their_input() -> None:
    raw = a_spec()
    before = deepcopy(raw)
    pods.pod(a_subject(raw), Role.WORKER, 0, 0, 0)
    pods.pod(a_subject(raw), Role.SERVER, 0, 0, 0)
    assert raw == before


@pytest.mark.parametrize("role", [Role.WORKER, Role.SERVER])
def test_pods_pass_pod_security_restricted(role: Role) -> None:
    spec = pods.pod(a_subject(), role, 0, 0, 0)["spec"]
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for container in spec["containers"]:
        security = container["securityContext"]
        assert (security["allowPrivilegeEscalation"], security["capabilities"]) == (False, {"drop": ["ALL"]})
    assert spec["automountServiceAccountToken"] is False


def test_each_pod_mounts_its_own_credentials_only() -> None:
    for role, ordinal, name in ((Role.WORKER, 1, "worker-1."), (Role.SERVER, 0, "ps-0.")):
        volumes = pods.pod(a_subject(), role, ordinal, 0, 0)["spec"]["volumes"]
        items = next(v for v in volumes if v["name"] == "paceline-tls")["secret"]["items"]
        assert [i["key"] for i in items] == ["ca.pem", f"{name}cert.pem", f"{name}key.pem"]
    insecure = a_subject(a_spec(security={"transport": "Insecure"}))
    assert pods.pod(insecure, Role.WORKER, 0, 0, 0)["spec"]["volumes"] == []


def test_the_template_is_passed_on_and_the_user_has_the_last_word() -> None:
    raw = a_spec()
    template = raw["workers"]["template"]
    template["metadata"] = {"labels": {"team": "vision"}, "annotations": {"a": "b"}}
    template["spec"] |= {"nodeSelector": {"gpu": "h200"}, "tolerations": [{"operator": "Exists"}]}
    template["spec"] |= {"runtimeClassName": "nvidia", "priorityClassName": "high"}
    template["spec"]["containers"][0]["env"] = [{"name": "OMP_NUM_THREADS", "value": "3"}]
    template["spec"]["containers"].append({"name": "sidecar", "image": "x"})
    pod = pods.pod(a_subject(raw), Role.WORKER, 0, 0, 0)
    assert pod["metadata"]["labels"]["team"] == "vision"
    assert pod["metadata"]["annotations"]["a"] == "b"
    for name in ("nodeSelector", "tolerations", "runtimeClassName", "priorityClassName"):
        assert pod["spec"][name] == template["spec"][name]
    assert environment(pod)["OMP_NUM_THREADS"] == "3"
    assert [c["name"] for c in pod["spec"]["containers"]] == ["trainer", "sidecar"]


@pytest.mark.parametrize(
    ("limit", "processes", "threads"), [(None, 1, "1"), ("4", 1, "4"), ("500m", 1, "1"), ("8", 2, "4"), (2, 1, "2")]
)
def test_threads_follow_the_cpu_limit(limit: Any, processes: int, threads: str) -> None:
    raw = a_spec()
    raw["workers"]["processesPerReplica"] = processes
    if limit is not None:
        raw["workers"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"cpu": limit}}
    assert environment(pods.pod(a_subject(raw), Role.WORKER, 0, 0, 0))["OMP_NUM_THREADS"] == threads


def test_one_process_for_each_gpu() -> None:
    raw = a_spec(workers=2)
    raw["workers"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": 4}}
    subject = a_subject(raw)
    assert subject.spec.world_size == 8
    pod = pods.pod(subject, Role.WORKER, 1, 0, 0)
    told = local_environments(environment(pod))
    assert [e["PACELINE_ORDINAL"] for e in told] == ["4", "5", "6", "7"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in told] == ["0", "1", "2", "3"]
    assert [e["PACELINE_METRICS"].rpartition(":")[2] for e in told] == ["9090", "9091", "9092", "9093"]
    volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
    assert volumes["paceline-shm"]["emptyDir"] == {"medium": "Memory"}
    policy = pods.network_policy(subject, OPERATOR, [])
    assert policy["spec"]["ingress"][1]["ports"] == [{"protocol": "TCP", "port": 9090, "endPort": 9093}]


@pytest.mark.parametrize(
    ("workers", "level", "role", "scraped"),
    [
        (4, "Auto", Role.WORKER, True),
        (2048, "Auto", Role.WORKER, True),
        (2049, "Auto", Role.WORKER, False),
        (2049, "Auto", Role.SERVER, True),
        (4, "Aggregated", Role.WORKER, False),
        (2049, "Detailed", Role.WORKER, True),
    ],
)
def test_workers_are_not_scraped_at_the_aggregated_level(workers: int, level: str, role: Role, scraped: bool) -> None:
    raw = a_spec(workers=workers, observability={"level": level})
    metadata = pods.pod(a_subject(raw), role, 0, 0, 0)["metadata"]
    assert metadata["labels"].get("paceline.dev/scrape") == ("true" if scraped else None)
    assert metadata["annotations"].get("prometheus.io/scrape") == ("true" if scraped else None)


def test_each_process_has_a_named_metrics_port() -> None:
    raw = a_spec()
    raw["workers"]["processesPerReplica"] = 3
    container = pods.pod(a_subject(raw), Role.WORKER, 0, 0, 0)["spec"]["containers"][0]
    assert {p["name"]: p["containerPort"] for p in container["ports"]} == {
        "metrics": 9090, "metrics-1": 9091, "metrics-2": 9092,
    }  # fmt: skip
    server = pods.pod(a_subject(raw), Role.SERVER, 0, 0, 0)["spec"]["containers"][0]
    assert {p["name"]: p["containerPort"] for p in server["ports"]} == {"wire": 7070, "metrics": 9090}


def test_servers_take_the_workers_image_or_a_template_of_their_own() -> None:
    plain = pods.pod(a_subject(), Role.SERVER, 0, 0, 0)["spec"]["containers"][0]
    assert (plain["name"], plain["image"]) == ("server", "example/image:1")
    raw = a_spec()
    own = {"name": "server", "resources": {"limits": {"memory": "8Gi"}}}
    raw["parameterServer"]["template"] = {"spec": {"containers": [own]}}
    container = pods.pod(a_subject(raw), Role.SERVER, 0, 0, 0)["spec"]["containers"][0]
    assert container["image"] == "example/image:1"
    assert container["resources"] == own["resources"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"env": [{"name": "PACELINE_ROLE", "value": "x"}]}, "env: PACELINE_ROLE is set by the operator"),
        ({"image": None}, "image: is required in a cluster"),
    ],
)
def test_what_only_the_operator_finds_wrong(change: dict[str, Any], said: str) -> None:
    raw = a_spec()
    raw["workers"]["template"]["spec"]["containers"][0] |= change
    assert said in "; ".join(pods.problems(a_subject(raw)))


def allowed(policy: dict[str, Any], namespace: str, labels: dict[str, str], port: int) -> bool:
    """What the NetworkPolicy means, for a peer in a namespace with the standard label of its name."""

    def fits(selector: dict[str, Any] | None, found: dict[str, str]) -> bool:
        return selector is None or all(found.get(k) == v for k, v in selector.get("matchLabels", {}).items())

    def peer(p: dict[str, Any]) -> bool:
        where = p.get("namespaceSelector")
        inside = namespace == "team" if where is None else fits(where, {"kubernetes.io/metadata.name": namespace})
        return inside and fits(p.get("podSelector"), labels)

    def open_port(rule: dict[str, Any]) -> bool:
        return "ports" not in rule or any(p["port"] <= port <= p.get("endPort", p["port"]) for p in rule["ports"])

    return any(open_port(r) and any(peer(p) for p in r["from"]) for r in policy["spec"]["ingress"])


@pytest.mark.parametrize(
    ("namespace", "labels", "port", "expected"),
    [
        ("team", {"paceline.dev/training": "digits"}, 7070, True),
        ("team", {"paceline.dev/training": "digits"}, 40_000, True),
        ("team", {"paceline.dev/training": "other"}, 7070, False),
        ("elsewhere", {"paceline.dev/training": "digits"}, 7070, False),
        (OPERATOR, {"app.kubernetes.io/name": "paceline-operator"}, 9090, True),
        (OPERATOR, {"app.kubernetes.io/name": "paceline-operator"}, 7070, False),
        (OPERATOR, {"app.kubernetes.io/name": "something"}, 9090, False),
        ("monitoring", {"app": "prometheus"}, 9090, True),
        ("monitoring", {"app": "prometheus"}, 7070, False),
    ],
)
def test_who_reaches_the_pods(namespace: str, labels: dict[str, str], port: int, expected: bool) -> None:
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    policy = pods.network_policy(a_subject(), OPERATOR, [prometheus])
    assert allowed(policy, namespace, labels, port) is expected


def test_the_operator_needs_neither_torch_nor_the_trainer() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['paceline'] = None\n"
        "import paceline_operator.__main__, paceline_operator.definition.crd, paceline_operator.helm_test"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_environment_fits_into_a_process() -> None:
    subject = a_subject(a_spec(workers=10_000, servers=64))
    assert len(json.dumps(pods.pod(subject, Role.WORKER, 0, 0, 0))) < 100_000
