"""Asks the Kubernetes API through the user's kubectl, which brings the cluster's address and ways to sign in."""

import json
import re
import subprocess
from typing import Any

from paceline.views.status import printable
from paceline_core.errors import SpecError

SECONDS = 20.0  # for one answer
ERROR = re.compile(r"Error from server \((?P<reason>\w+)\): (?P<message>.*)", re.DOTALL)


class Refused(SpecError):
    """The API gave an error, or none answered; `reason` is the API's word for it, or empty."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__([message])
        self.reason = reason

    @property
    def unknown_page(self) -> bool:
        """Whether there is no such path, in contrast to an object that is missing."""
        return self.reason == "NotFound" and "could not find the requested resource" in str(self)


def namespace() -> str:
    """The namespace of the current context. Raises Refused."""
    return _output("config", "view", "--minify", "-o", "jsonpath={..namespace}").strip() or "default"


def get(path: str) -> Any:
    """The JSON at a path of the API. Raises Refused."""
    text = _output("get", "--raw", path)
    try:
        return json.loads(text)
    except ValueError:
        raise Refused("", f"{path}: answered something that is not JSON") from None


def _output(*arguments: str) -> str:
    try:
        done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, timeout=SECONDS, check=False)
    except FileNotFoundError:
        raise Refused("", "kubectl is not on the PATH") from None
    except subprocess.TimeoutExpired:
        raise Refused("Timeout", f"no answer within {SECONDS:g} s") from None
    if done.returncode:
        raise _refusal(done.stderr)
    return done.stdout


def _refusal(told: str) -> Refused:
    found = ERROR.search(told)
    if found:
        return Refused(found["reason"], printable(found["message"].strip()))
    last = (told.strip().splitlines() or ["no reason given"])[-1]
    return Refused("", printable(f"kubectl: {last.removeprefix('error: ')}"))
