"""What `kubectl apply` refuses, and what it says."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import ROOT, Trainings, kubectl, training, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SLEEP = ["sleep", "300"]


def changed(path: str, value: Any) -> dict[str, Any]:
    """A good manifest with one field set; None removes it."""
    manifest = training("wrong", SLEEP)
    *parents, last = path.split(".")
    node: Any = manifest
    for part in parents:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    if value is None:
        del node[last]
    else:
        node[last] = value
    return manifest


CONTAINERS = "spec.workers.template.spec.containers"
WRONG = [
    ("spec.topology", "Ring", 'supported values: "ParameterServer", "AllReduce"'),
    ("spec.topology", None, "spec.topology: Required value"),
    ("spec.topology", "AllReduce", "`parameterServer` is set but topology is AllReduce: remove it"),
    ("spec.allReduce", {"backend": "Gloo"}, "`allReduce` is set but topology is ParameterServer: remove it"),
    ("spec.workers", None, "spec.workers: Required value"),
    ("spec.workers.replicas", 0, "should be greater than or equal to 1"),
    ("spec.workers.replicas", "four", 'must be of type integer: "string"'),
    ("spec.workers.replicas", 10_001, "should be less than or equal to 10000"),
    ("spec.worker", {}, 'unknown field "spec.worker"'),
    ("spec.workers.replica", 3, 'unknown field "spec.workers.replica"'),
    ("spec.workers.processesPerReplica", "Many", "must be Auto or a whole number from 1 to 64"),
    ("spec.workers.processesPerReplica", 0, "must be Auto or a whole number from 1 to 64"),
    (f"{CONTAINERS}.0.name", "main", "needs exactly one container named `trainer`"),
    (f"{CONTAINERS}.0.command", None, "container `trainer` needs a command, for example [python, train.py]"),
    (f"{CONTAINERS}.0.image", None, "container `trainer` needs an image in a cluster"),
    (CONTAINERS, [], "should have at least 1 items"),
    ("spec.parameterServer.replicas", 65, "should be less than or equal to 64"),
    ("spec.parameterServer.strategy", "Sometimes", 'supported values: "Synchronous", "Asynchronous"'),
    ("spec.parameterServer.asynchronous", {"maxStaleness": 3}, "`asynchronous` is set but strategy is Synchronous"),
    (
        "spec.checkpoint",
        {"everySteps": 10},
        "`to` is required in a cluster: a folder on a volume, for example /checkpoints, that every",
    ),
    ("spec.checkpoint", {"to": "/checkpoints"}, "says not when: set everySteps or everySeconds, or both"),
    ("spec.checkpoint", {"everySteps": 1, "to": "here"}, "spec.checkpoint.to: Invalid value"),
    ("spec.checkpoint", {"everySteps": 1, "to": "/a", "resume": "Maybe"}, 'supported values: "Never", "Auto"'),
    ("spec.checkpoint", {"everySteps": 1, "to": "/a", "keep": 0}, "should be greater than or equal to 1"),
    ("spec.gradients.bucketMib", 0, "should be greater than 0"),
    ("spec.gradients.timeoutSeconds", -1, "should be greater than 0"),
    ("spec.runPolicy.backoffLimit", -1, "should be greater than or equal to 0"),
    ("spec.runPolicy.cleanPodPolicy", "Some", 'supported values: "None", "Running", "All"'),
    ("spec.security.transport", "SSL", 'supported values: "TLS", "Insecure"'),
    ("metadata.name", "a" * 49, "metadata.name: at most 48 characters"),
    ("metadata.name", "9lives", "a letter first"),
]


@pytest.fixture(scope="module")
def namespace(cluster: None) -> Iterator[Trainings]:
    out = Trainings("test-admission")
    yield out
    kubectl("delete", "namespace", "test-admission", "--wait=true", "--timeout=100s", limit=130)


@pytest.mark.parametrize(("path", "value", "said"), WRONG, ids=[f"{p}={v}"[:60] for p, v, _ in WRONG])
def test_a_wrong_manifest_is_refused_with_a_way_out(namespace: Trainings, path: str, value: Any, said: str) -> None:
    answer = namespace.apply(changed(path, value), check=False)
    assert said in answer, answer
    assert "created" not in answer


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.workers.replicas", 2),
        ("spec.parameterServer.replicas", 2),
        ("spec.gradients", {"connections": 2}),
        ("spec.security", {"transport": "Insecure"}),
        ("spec.checkpoint", {"everySteps": 1, "to": "/checkpoints"}),
        (f"{CONTAINERS}.0.command", ["sleep", "301"]),
        (f"{CONTAINERS}.0.resources", {"limits": {"cpu": "1"}}),
    ],
)
def test_what_cannot_change_in_flight_is_refused(namespace: Trainings, path: str, value: Any) -> None:
    before = training("wrong", SLEEP, suspend=True)
    namespace.apply(before)
    after = changed(path, value)
    after["spec"]["runPolicy"] = before["spec"]["runPolicy"]
    answer = namespace.apply(after, check=False)
    assert "cannot be changed: delete the training and create it anew" in answer
    for policy in ({"suspend": True, "backoffLimit": 9}, {"suspend": True, "ttlSecondsAfterFinished": 100_000}):
        assert "configured" in namespace.apply(before | {"spec": before["spec"] | {"runPolicy": policy}})


def snippets() -> list[tuple[str, str]]:
    """Every training in an example or in the docs."""
    found = [(p.name, p.read_text()) for p in sorted((ROOT / "manifests/examples").glob("*.yaml"))]
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]):
        for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S)):
            if "kind: DistributedTraining" in block:
                found.append((f"{page.name}-{number}", block))
    return found


@pytest.mark.parametrize("text", [t for _, t in snippets()], ids=[n for n, _ in snippets()])
def test_every_example_and_snippet_is_applied_and_begins(namespace: Trainings, text: str) -> None:
    for manifest in yaml.safe_load_all(text):
        begins(namespace, manifest)


def begins(namespace: Trainings, manifest: dict[str, Any]) -> None:
    name = manifest["metadata"]["name"]
    assert "created" in namespace.apply(manifest)
    try:
        wait_for(lambda: namespace.pods(name, "worker"), "the workers' pods", 60)
    finally:
        namespace.kubectl("delete", "dt", name, "--cascade=foreground", "--timeout=60s")


def test_fields_are_explained(namespace: Trainings) -> None:
    answer = namespace.kubectl("explain", "dt.spec.workers")
    assert "Pod template; its container `trainer` runs the training script." in answer
    assert "Default: 1." in answer
