"""Asks a process of a local run."""

import json
import urllib.request
from http.client import HTTPException
from typing import Any

from paceline_core.errors import SpecError

SECONDS = 3.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would not find this machine


class NoAnswer(SpecError):
    """Nothing useful came back; says why. `silent`: somebody listens, but says nothing yet."""

    def __init__(self, problem: str, silent: bool) -> None:
        super().__init__([problem])
        self.silent = silent


def get(url: str) -> Any:
    """The JSON at an address. Raises NoAnswer."""
    try:
        with _OPENER.open(url, timeout=SECONDS) as answer:
            return json.load(answer)
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise NoAnswer(f"{url}: {reason}", silent=isinstance(reason, TimeoutError)) from None
