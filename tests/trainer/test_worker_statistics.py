"""What a server counts of a worker."""

import pytest

from paceline.server.observability.worker_statistics import new_workers


def row(step: int, accepted: bool) -> dict[str, object]:
    return {"step": step, "wall": 0.1, "latency": 0.05, "phases": {}, "accepted": accepted, "loss": 1.0}


@pytest.mark.parametrize(("repeats", "expected"), [(True, 3), (False, 5)])
def test_a_step_that_is_repeated_counts_once(repeats: bool, expected: int) -> None:
    worker = new_workers(1)[0]
    worker.report([row(1, True), row(2, False), row(3, True), row(4, False), row(5, True)], {}, repeats)
    assert worker.step == expected
