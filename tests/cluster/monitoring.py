"""Prometheus in the cluster: its image, its pod with no more rights than the page names, and its HTTP API."""

import http.client
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.charts.test_monitoring import snippet
from tests.cluster.conftest import HOME, SCRIPT, inside, kubectl, wait_for
from tests.observability.prometheus import Api, hurried

NAMESPACE, NAME, IMAGE = "monitoring", "prometheus", "localhost/prometheus:1"
DOCKERFILE = Path(__file__).parent / "prometheus/Dockerfile"
PROXY = f"/api/v1/namespaces/{NAMESPACE}/pods/{NAME}:9090/proxy"


def load_image() -> None:
    """Into the tests' own cluster."""
    command = ["buildah", "build", "-q", "--isolation", "chroot", "-f", str(DOCKERFILE), "-t", IMAGE, str(HOME / "bin")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    archive = HOME / "prometheus.tar"
    try:
        subprocess.run(["buildah", "push", "-q", IMAGE, f"docker-archive:{archive}:{IMAGE}"], check=True)
        subprocess.run([SCRIPT, "load", archive], check=True, capture_output=True, timeout=120)
    finally:
        archive.unlink(missing_ok=True)


def configuration() -> dict[str, str]:
    """The page's scrape configuration as it stands, and the chart's rules; only both in a hurry."""
    config = snippet("scrape-config", "cluster")
    (file,) = config["rule_files"]
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    config["rule_files"] = [f"/etc/prometheus/{file}"]
    return {"prometheus.yaml": yaml.safe_dump(config), file: hurried()}


def objects() -> list[dict[str, Any]]:
    """Everything but the namespace."""
    about = {"name": NAME, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/name": NAME}}
    account = {"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}
    rights = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": configuration()},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": about, "rules": [rights]},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": about,
            "roleRef": role,
            "subjects": [account],
        },
        {"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": pod_spec()},
    ]


def pod_spec() -> dict[str, Any]:
    """As Pod Security *restricted* wants it."""
    arguments = ("--config.file=/etc/prometheus/prometheus.yaml", "--storage.tsdb.path=/data")
    container = {
        "name": NAME,
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": [*arguments, "--web.listen-address=:9090"],
        "ports": [{"name": "web", "containerPort": 9090}],
        "readinessProbe": {"httpGet": {"path": "/-/ready", "port": "web"}, "periodSeconds": 1},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/prometheus"}, {"name": "data", "mountPath": "/data"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    return {
        "serviceAccountName": NAME,
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": NAME}}, {"name": "data", "emptyDir": {}}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 1,
    }


@contextmanager
def prometheus() -> Iterator[Api]:
    """It runs until the end of the `with`; asked through the API server, by way of kubectl."""
    kubectl("create", "namespace", NAMESPACE)
    try:
        kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        kubectl("apply", "-f", "-", text=yaml.safe_dump_all(objects()))
        kubectl("wait", "-n", NAMESPACE, "--for=condition=Ready", f"pod/{NAME}", "--timeout=60s")
        with _proxy() as socket_file:
            yield Api(lambda: OverSocket(socket_file), PROXY)
    finally:
        kubectl("delete", "clusterrole,clusterrolebinding", NAME, "--ignore-not-found")
        kubectl("delete", "namespace", NAMESPACE, "--wait=true", "--timeout=100s", limit=130)


class OverSocket(http.client.HTTPConnection):
    """HTTP over a Unix socket, which reaches into the cluster's network namespace from outside."""

    def __init__(self, file: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._file = file

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._file))


@contextmanager
def _proxy() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder:  # the name of a socket has at most 107 characters
        file = Path(folder, "proxy")
        command = inside("kubectl", "proxy", f"--unix-socket={file}")
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        try:
            wait_for(file.is_socket, "kubectl proxy", 30)
            yield file
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # kubectl is a grandchild
            process.wait()
