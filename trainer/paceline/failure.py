"""The failure file: why this process died, for the runner and, as the termination message, for Kubernetes."""

import json
import traceback
from pathlib import Path
from typing import Any

from paceline_core.errors import PeerLost

TRACEBACK_LIMIT = 3000  # characters; Kubernetes keeps 4096 bytes of a termination message


def describe(error: BaseException) -> dict[str, str | bool]:
    """The error as the failure file holds it; `victim` when this process died because of another."""
    text = "".join(traceback.format_exception(error))
    return {
        "kind": type(error).__name__,
        "message": str(error)[:TRACEBACK_LIMIT],
        "traceback": text[-TRACEBACK_LIMIT:],
        "victim": isinstance(error, PeerLost) or _broken_ring(error),
    }


def _broken_ring(error: BaseException) -> bool:
    """Whether torch.distributed complains that another process has gone; it has no exception of its own for gloo."""
    text = str(error)
    gone = any(words in text for words in ("Connection closed by peer", "Connection reset by peer", "Broken pipe"))
    return isinstance(error, RuntimeError) and gone and ("gloo" in text or "nccl" in text.lower())


def write_summary(summary: dict[str, Any], path: str | None) -> None:
    """Leave how the training ended where its failure would stand: the operator reads it from the ended pod."""
    if path is not None:
        Path(path).write_text(json.dumps({"summary": summary}))


def write(error: BaseException, path: str | None) -> None:
    """Write the failure file, if the launch names one. It tells the reason: a full disk must not hide it."""
    if path is None:
        return
    described = describe(error)
    try:
        if described["victim"] and Path(path).is_file() and Path(path).stat().st_size:
            return  # another process of this pod told its own reason
        Path(path).write_text(json.dumps(described))
    except OSError as problem:
        error.add_note(f"the failure file could not be written: {problem}")
