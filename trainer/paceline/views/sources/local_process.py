"""Asks a process of a local run."""

import re
import time
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import Any

from paceline.files import bounded_reading
from paceline.terminal import printable
from paceline_core.errors import SpecError

SECONDS = 3.0
ADDRESS = re.compile(r"http://127\.0\.0\.1:[0-9]{1,5}/[a-z]{1,20}")  # what a run writes down, and nothing else is asked


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A process of a run sends nobody elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


# a proxy would not find this machine
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())


class NoAnswer(SpecError):
    """Nothing useful came back; says why. `silent`: somebody listens, but says nothing yet."""

    def __init__(self, problem: str, silent: bool) -> None:
        super().__init__([problem])
        self.silent = silent


def get(url: str) -> Any:
    """The JSON at an address of this machine. Raises NoAnswer."""
    if not ADDRESS.fullmatch(url):
        raise NoAnswer(f"{printable(url)} is not the address of a process of a run", silent=False)
    try:
        with _OPENER.open(url, timeout=SECONDS) as answer:
            return bounded_reading.json_value(_whole(answer), bounded_reading.MOST_TRACED)
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise NoAnswer(f"{url}: {printable(str(reason))}", silent=isinstance(reason, TimeoutError)) from None


def _whole(answer: HTTPResponse) -> bytes:
    data, until = bytearray(), time.monotonic() + SECONDS
    while chunk := answer.read1(bounded_reading.CHUNK):
        data += chunk
        if len(data) > bounded_reading.MOST_JSON:
            raise ValueError("the answer does not end")
        if time.monotonic() > until:
            raise TimeoutError("the answer takes too long")
    return bytes(data)
