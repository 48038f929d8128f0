"""Why a run failed, of all that its processes told."""

from collections.abc import Sequence
from typing import Any

from paceline.local.replica import Replica
from paceline.local.restarts import killed


def root_cause(replicas: Sequence[Replica]) -> dict[str, Any] | None:
    """The earliest failure that is not a consequence of another; the other failures are its victims."""
    failed = sorted((r for r in replicas if r.code()), key=lambda r: r.ended or 0.0)
    failures = [(r, r.failure()) for r in failed if not r.stopped_by_us]
    if not failures:
        return None
    replica, failure = next(((r, f) for r, f in failures if not f["victim"]), failures[0])
    kind = failure["kind"]
    message = failure["message"] if not kind else f"{kind}: {failure['message']}"
    return {
        "replica": replica.name,
        "message": message,
        "traceback": failure["traceback"],
        "victims": [r.name for r in replicas if r is not replica and r.code() != 0],
        "restart": killed(replica) or bool(failure["victim"]),  # not what a script did, which it would do again
    }


def own_failure(replica: str, message: str) -> dict[str, Any]:
    """A failure that the runner itself found."""
    return {"replica": replica, "message": message, "traceback": "", "victims": [], "restart": False}
