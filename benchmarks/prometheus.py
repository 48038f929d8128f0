"""Starts Debian's Prometheus on loopback for a measurement, and asks it."""

import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from paceline.local import ports

READY_SECONDS = 60.0


class Prometheus:
    """A Prometheus that scrapes these targets (host:port by job) and evaluates the chart's rules."""

    def __init__(self, targets: Mapping[str, list[str]], scrape_seconds: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="paceline-prometheus-")
        rules = Path(__file__).parents[1] / "charts/paceline/rules/paceline.yaml"
        jobs = [
            {"job_name": job, "static_configs": [{"targets": addresses, "labels": {"namespace": "bench"}}]}
            for job, addresses in targets.items()
        ]
        interval = {"scrape_interval": f"{scrape_seconds}s", "scrape_timeout": f"{scrape_seconds}s"}
        file = Path(self._folder.name, "prometheus.yml")
        file.write_text(yaml.safe_dump({"global": interval, "rule_files": [str(rules)], "scrape_configs": jobs}))
        listener = ports.bind(0, "prometheus")
        self.address = ports.address(listener)
        listener.close()
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={self._folder.name}/data",
             f"--web.listen-address={self.address}", "--log.level=error"],
        )  # fmt: skip

    def __enter__(self) -> Self:
        limit = time.monotonic() + READY_SECONDS
        while time.monotonic() < limit:
            try:
                urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=5).close()
                return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise TimeoutError("Prometheus did not become ready")

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.process.terminate()
        self.process.wait()
        self._folder.cleanup()

    def ask(self, query: str) -> tuple[list[Any], float]:
        """The result of an instant query, and the seconds that it took."""
        url = f"http://{self.address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        began = time.perf_counter()
        with urllib.request.urlopen(url, timeout=120) as answer:
            found = json.load(answer)["data"]["result"]
        return found, time.perf_counter() - began

    def value(self, query: str) -> float:
        """The value of a query with one result; NaN without."""
        found, _ = self.ask(query)
        return float(found[0]["value"][1]) if found else float("nan")

    def rule_seconds(self) -> float:
        """How long the slowest group of rules took to evaluate, the last time."""
        with urllib.request.urlopen(f"http://{self.address}/api/v1/rules", timeout=120) as answer:
            return max(float(group["evaluationTime"]) for group in json.load(answer)["data"]["groups"])

    def memory(self) -> int:
        """Resident bytes, the most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
