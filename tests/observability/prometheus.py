"""Prometheus for tests: its HTTP API, and Debian's program with the page's configuration for a run on this machine."""

import http.client
import json
import math
import socket
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.charts.test_monitoring import RULES, snippet
from tests.cluster.conftest import wait_for

STEP_SECONDS = 5  # between the points of a graph
Sample = tuple[dict[str, str], float]


class Api:
    """Prometheus' HTTP API, over the connections that `connect` makes; all its paths begin with `prefix`."""

    def __init__(self, connect: Callable[[], http.client.HTTPConnection], prefix: str = "") -> None:
        self._connect, self._prefix = connect, prefix

    def fetch(self, path: str) -> tuple[int, str]:
        """The status and the text of an answer."""
        connection = self._connect()
        try:
            connection.request("GET", self._prefix + path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def get(self, path: str, **parameters: str | float) -> Any:
        """The data of a call, which must neither fail nor warn."""
        status, text = self.fetch(f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        assert status == http.HTTPStatus.OK, f"{path} {parameters}: {status} {text}"
        answer = json.loads(text)
        assert not answer.get("warnings"), f"{path} {parameters}: {answer['warnings']}"
        return answer["data"]

    def ask(self, expr: str) -> list[Sample]:
        """What an expression is now: labels and value of each series, without those that are not finite numbers."""
        data = self.get("query", query=expr)
        found = [data["result"]] if data["resultType"] == "scalar" else [s["value"] for s in data["result"]]
        labels = [{}] if data["resultType"] == "scalar" else [s["metric"] for s in data["result"]]
        values = [float(value) for _, value in found]
        return [(label, value) for label, value in zip(labels, values, strict=True) if math.isfinite(value)]

    def graph(self, expr: str, since: float) -> list[Sample]:
        """What an expression was since then, in Unix time: labels and last finite value of each series."""
        end = time.time()
        data = self.get("query_range", query=expr, start=since, end=end, step=STEP_SECONDS)
        series = [(s["metric"], [float(v) for _, v in s["values"]]) for s in data["result"]]
        finite = [(labels, [v for v in values if math.isfinite(v)]) for labels, values in series]
        return [(labels, values[-1]) for labels, values in finite if values]

    def ready(self) -> bool:
        """Whether it answers at all."""
        try:
            return self.fetch("/-/ready")[0] == http.HTTPStatus.OK
        except OSError:
            return False

    def all_up(self, count: int) -> bool:
        """Whether so many targets are there, and the last scrape of each succeeded."""
        return [value for _, value in self.ask("up")] == [1.0] * count


@contextmanager
def prometheus(folder: Path, config: dict[str, Any]) -> Iterator[Api]:
    """Debian's, on a free port, with its data in the folder, until the end of the `with`."""
    file, port = folder / "prometheus.yaml", free_port()
    file.write_text(yaml.safe_dump(config))
    api = Api(lambda: http.client.HTTPConnection("127.0.0.1", port, timeout=30))
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"]
    with (
        (folder / "prometheus.log").open("w") as log,
        subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=log) as process,
    ):
        try:
            wait_for(lambda: process.poll() is not None or api.ready(), "Prometheus")
            assert process.poll() is None, Path(log.name).read_text()
            yield api
        finally:
            process.terminate()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def hurried() -> str:
    """The chart's rules, evaluated every two seconds."""
    return RULES.read_text().replace("interval: 30s", "interval: 2s")


def configured(folder: Path, targets: Sequence[str]) -> dict[str, Any]:
    """The page's configuration for a run on this machine, with these targets, scraped every second."""
    config, rules = snippet("scrape-config", "local"), folder / "paceline.yaml"
    rules.write_text(hurried())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "2s"}
    config["rule_files"] = [str(rules)]
    (job,) = config["scrape_configs"]
    (static,) = job["static_configs"]
    static["targets"] = list(targets)
    return config
