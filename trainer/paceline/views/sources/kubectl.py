"""Asks the Kubernetes API through the user's kubectl, which brings the cluster's address and ways to sign in."""

import re
import subprocess
from typing import Any

from paceline.files import bounded_reading
from paceline.terminal import printable
from paceline_core.errors import SpecError

SECONDS = 20.0  # for one answer
MOST_VALUES = 20_000_000  # in it: the trace of a server with thousands of workers
ERROR = re.compile(r"Error from server \((?P<reason>\w+)\): (?P<message>.*)", re.DOTALL)


class KubectlError(SpecError):
    """The API gave an error, or none answered; `reason` is the API's word for it, or empty."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__([message])
        self.reason = reason

    @property
    def unknown_page(self) -> bool:
        """Whether there is no such path, in contrast to an object that is missing."""
        return self.reason == "NotFound" and "could not find the requested resource" in str(self)


def namespace() -> str:
    """The namespace of the current context. Raises KubectlError."""
    return _output("config", "view", "--minify", "-o", "jsonpath={..namespace}").strip() or "default"


def get(path: str) -> Any:
    """The JSON at a path of the API. Raises KubectlError."""
    text = _output("get", "--raw", path)
    try:
        return bounded_reading.json_value(text.encode(), MOST_VALUES)
    except ValueError:
        raise KubectlError("", f"{path}: answered something that is not JSON") from None


def _output(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["kubectl", *arguments], capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except FileNotFoundError:
        raise KubectlError("", "kubectl is not on the PATH") from None
    except subprocess.TimeoutExpired:
        raise KubectlError("Timeout", f"no answer within {SECONDS:g} s") from None
    if done.returncode:
        raise _error(done.stderr)
    return done.stdout


def _error(told: str) -> KubectlError:
    found = ERROR.search(told)
    if found:
        return KubectlError(found["reason"], printable(found["message"].strip()))
    last = (told.strip().splitlines() or ["no reason given"])[-1]
    return KubectlError("", printable(f"kubectl: {last.removeprefix('error: ')}"))
