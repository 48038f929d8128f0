"""The failure file: why this process died, for the runner and, as the termination message, for Kubernetes."""

import traceback
from bisect import bisect_right
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paceline import json_text
from paceline_core.errors import PeerLost

KEPT_BYTES = 4096  # of a termination message, by the kubelet: its end, so that a longer one is no JSON any more
TEXT_LIMIT = 3000  # characters
LIBRARIES = ("gloo", "nccl", "pair closure")  # the last in an error of gloo that leaves out its name
BROKEN = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited", "aborted")
TOO_LATE = ("timed out", "timing out", "timeout")


def describe(error: BaseException) -> dict[str, str | bool]:
    """The error as the failure file holds it; `victim` when this process died because of another."""
    text = "".join(traceback.format_exception(error))
    return {
        "kind": type(error).__name__,
        "message": str(error)[:TEXT_LIMIT],
        "traceback": text[-TEXT_LIMIT:],
        "victim": isinstance(_behind(error), PeerLost) or broken_ring(error),
    }


def broken_ring(error: BaseException) -> bool:
    """Whether torch.distributed complains of another process; it has no exception of its own for that."""
    return _of_a_library(error, (*BROKEN, *TOO_LATE))


def too_late(error: BaseException) -> bool:
    """Whether torch.distributed waited for another process for too long."""
    return _of_a_library(error, TOO_LATE)


def write_summary(summary: dict[str, Any], path: str | None) -> None:
    """Leave how the training ended where its failure would stand: the operator reads it from the ended pod.

    Of what the script reported it holds as many values as fit.
    """
    if path is None:
        return
    reported = list(summary["reported"].items())

    def text(count: int) -> str:
        return json_text.dumps({"summary": {**summary, "reported": dict(reported[:count])}})

    Path(path).write_text(text(_most_that_fit(len(reported), text)))


def write(error: BaseException, path: str | None, more: Mapping[str, Any] | None = None) -> None:
    """Write the failure file, if the launch names one. It tells the reason: a full disk must not hide it.

    `more`: what the operator is told beside it, in a few hundred bytes.
    """
    if path is None:
        return
    described = {**describe(error), **(more or {})}
    try:
        if described["victim"] and Path(path).is_file() and Path(path).stat().st_size:
            return  # another process of this pod told its own reason
        Path(path).write_text(_fitting(described))
    except OSError as problem:
        error.add_note(f"the failure file could not be written: {problem}")


def _behind(error: BaseException) -> BaseException:
    """The error that the script caught, when it ended itself because of it."""
    return error.__context__ if isinstance(error, SystemExit) and error.__context__ is not None else error


def _of_a_library(error: BaseException, words: tuple[str, ...]) -> bool:
    behind = _behind(error)
    text = str(behind).lower()
    told = any(name in text for name in LIBRARIES) and any(each in text for each in words)
    return isinstance(behind, RuntimeError) and told


def _fitting(described: Mapping[str, Any]) -> str:
    """As JSON that Kubernetes keeps whole: the traceback is cut first, at its start, then the end of the message."""
    trace, message = str(described["traceback"]), str(described["message"])

    def shorter_trace(count: int) -> str:
        return json_text.dumps({**described, "traceback": trace[len(trace) - count :]})

    def shorter_message(count: int) -> str:
        return json_text.dumps({**described, "traceback": "", "message": message[:count]})

    count = _most_that_fit(len(trace), shorter_trace)
    return shorter_trace(count) if count else shorter_message(_most_that_fit(len(message), shorter_message))


def _most_that_fit(most: int, text: Callable[[int], str]) -> int:
    """The greatest count, up to `most`, whose text is kept whole; 0 if none is. The texts are of ASCII alone."""
    return max(0, bisect_right(range(most + 1), KEPT_BYTES, key=lambda count: len(text(count))) - 1)
