"""A real cluster: the one of KUBECONFIG, or the project's own, which `make cluster` builds once."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("cluster")
HOME = Path(os.environ.get("PACELINE_CLUSTER", Path.home() / ".cache/paceline-cluster"))
IMAGE = "ghcr.io/paceline/trainer:0.1.0"
SYSTEM = "paceline-system"
OWN = "KUBECONFIG" not in os.environ
SETTINGS = {"operator": {"pollSeconds": 1, "forceDeleteSeconds": 3}}


def inside(*command: str) -> list[str]:
    """A command as it runs where the cluster can be reached."""
    return [str(SCRIPT), "run", *command] if OWN else list(command)


def kubectl(*arguments: str, check: bool = True, text: str | None = None, limit: float = 120) -> str:
    """What kubectl prints; both streams."""
    done = subprocess.run(inside("kubectl", *arguments), input=text, capture_output=True, text=True, timeout=limit)
    if check and done.returncode:
        raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def helm(command: str, values: dict[str, Any] | None = None, namespace: str = SYSTEM) -> str:
    python, script = str(ROOT / ".venv/bin/python"), str(Path(__file__).with_name("helm.py"))
    called = inside(python, script, command, json.dumps(values or {}), namespace)
    done = subprocess.run(called, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_for(found: Callable[[], Any], what: str, limit: float = 90) -> Any:
    """Ask until the answer is true, and give it."""
    until = time.monotonic() + limit
    while not (answer := found()):
        assert time.monotonic() < until, f"waited {limit:g} s for {what}"
        time.sleep(0.5)
    return answer


def _up() -> bool:
    file = HOME / "state/init.pid"
    return file.is_file() and Path(f"/proc/{file.read_text().strip()}").is_dir()


@pytest.fixture(scope="session")
def cluster() -> None:
    """The cluster with the chart installed, which looks often so that the tests need not wait."""
    if OWN and not _up():
        assert "CI" not in os.environ, "the cluster is not up: .ci/run starts it before the tests"
        pytest.skip("no cluster here: set KUBECONFIG, or run `make cluster` as root")
    if "paceline" not in kubectl("get", "deploy", "-n", SYSTEM, "-o", "name"):
        helm("install", SETTINGS)
    else:
        helm("upgrade", SETTINGS)


class Trainings:
    """The trainings of one test, in a namespace of their own that enforces Pod Security *restricted*."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        kubectl("create", "namespace", namespace)
        kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return kubectl("-n", self.namespace, *arguments, **options)

    def apply(self, manifest: dict[str, Any] | str, **options: Any) -> str:
        text = manifest if isinstance(manifest, str) else yaml.safe_dump(manifest)
        return self.kubectl("apply", "-f", "-", text=text, **options)

    def get(self, name: str) -> dict[str, Any]:
        return json.loads(self.kubectl("get", "dt", name, "-o", "json"))

    def status(self, name: str) -> dict[str, Any]:
        return self.get(name).get("status", {})

    def pods(self, name: str, what: str = "") -> list[dict[str, Any]]:
        selector = f"paceline.dev/training={name}" + (f",paceline.dev/role={what}" if what else "")
        return json.loads(self.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]

    def wait(self, name: str, limit: int = 240) -> dict[str, Any]:
        """Until it has finished, as a user waits."""
        try:
            self.kubectl("wait", "--for=condition=Finished", f"dt/{name}", f"--timeout={limit}s", limit=limit + 30)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.kubectl('describe', 'dt', name)}") from None
        return self.status(name)

    def until(self, name: str, limit: float = 60, **wanted: Any) -> dict[str, Any]:
        """Until the status says this."""

        def there() -> Any:
            status = self.status(name)
            return status if all(status.get(k) == v for k, v in wanted.items()) else None

        try:
            return wait_for(there, f"{name} to be {wanted}", limit)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.kubectl('describe', 'dt', name)}") from None


@pytest.fixture
def trainings(cluster: None, request: pytest.FixtureRequest) -> Iterator[Trainings]:
    name = re.sub("[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-")
    out = Trainings(name)
    yield out
    kubectl("delete", "namespace", name, "--wait=true", "--timeout=100s", limit=130)


def example(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"manifests/examples/{name}.yaml").read_text())


def training(
    name: str, command: list[str], workers: int = 1, servers: int = 1, strategy: str = "Synchronous", **policy: Any
) -> dict[str, Any]:
    """A small training; `policy` is its runPolicy."""
    container: dict[str, Any] = {"name": "trainer", "image": IMAGE, "command": command}
    spec: dict[str, Any] = {
        "topology": "ParameterServer",
        "parameterServer": {"replicas": servers, "strategy": strategy},
        "workers": {"replicas": workers, "template": {"spec": {"containers": [container]}}},
        "runPolicy": policy,
    }
    if strategy == "AllReduce":
        spec["topology"] = "AllReduce"
        del spec["parameterServer"]
    return {
        "apiVersion": "paceline.dev/v1alpha1",
        "kind": "DistributedTraining",
        "metadata": {"name": name},
        "spec": spec,
    }


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["workers"]["template"]["spec"]["containers"][0]
