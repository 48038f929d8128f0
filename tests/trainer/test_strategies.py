"""Every strategy does what its knobs promise, with a slow worker: a new one is tested here as soon as it is in the table."""

import csv
from pathlib import Path

import pytest

from paceline_core import modes
from paceline_core.modes import MODES, Mode

from .conftest import Outcome, Run
from .test_runs import script

WORKERS, STEPS, SLOW = 4, 80, 2
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # up to three runs, one after the other


@pytest.fixture(params=MODES.values(), ids=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


def ended(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.output
    return outcome


def test_a_slow_worker_is_named_and_treated_as_the_knobs_say(run: Run, mode: Mode) -> None:
    outcome = ended(run(script(STEPS, 0.02), "--slow", f"worker-{SLOW}=10x", strategy=mode.name, workers=WORKERS))
    result, workers = outcome.result, outcome.result["workers"]
    assert result["strategy"] == mode.name
    said = {w["worker"] for w in workers if w["verdicts"]}
    assert said == {SLOW}, "the slow worker, and no other, is named in the table"
    verdict = result["verdict"]
    assert (verdict["worker"] if verdict else None) == (SLOW if mode.knobs.waits_for_all else None)
    assert ("made the others wait:" in outcome.output) == mode.knobs.waits_for_all
    assert all((w["lag_seconds"] is not None) == mode.knobs.names_lag for w in workers)
    late = [w["rejected_by_reason"].get("stale", 0) for w in workers]
    if mode.knobs.rejects_late:  # others may miss an update as well, now and then
        assert late[SLOW] > sum(late) / 2
    else:
        assert late == [0] * WORKERS
    made = [w["step"] + (w["rejected"] if mode.knobs.repeats else 0) for w in workers]
    assert made == [STEPS] * WORKERS
    lost = result["goodput"]["lost"]
    assert (lost.get("straggler", 0.0) > 1.0) == mode.knobs.waits_for_all
    assert (lost.get("rework", 0.0) > 0.0) == mode.knobs.rejects_late


def test_the_order_of_updates_is_what_the_knobs_say(run: Run, mode: Mode) -> None:
    asked = {"strategy": mode.name, "workers": WORKERS, "servers": 1 if mode.ring else 2}
    first = ended(run(script(40, 0.002), "--slow", f"worker-{SLOW}=20ms", **asked))
    replay = ["--replay", str(first.folder)] if mode.knobs.order_matters else []
    again = ended(run(script(40, 0.002), *replay, **asked))
    assert first.result["weights_sha256"] == again.result["weights_sha256"]
    if not mode.knobs.order_matters:
        refused = run(script(40, 0.002), "--replay", str(first.folder), **asked)
        assert refused.code == 2
        assert "need it; the others give the same weights each time" in refused.output


def test_an_update_takes_the_quorum_that_the_knobs_say(run: Run, mode: Mode) -> None:
    if mode.ring:
        pytest.skip("a ring has no server that counts")
    outcome = ended(run(script(40, 0.002), strategy=mode.name, workers=modes.WORKERS))
    pushes = pushes_of_updates(outcome.folder / "arrivals-ps-0.csv")
    wanted = mode.knobs.quorum or modes.WORKERS
    assert max(pushes) == wanted
    assert set(pushes[: len(pushes) // 2]) == {wanted}, "later some have left"


def pushes_of_updates(log: Path) -> list[int]:
    versions: dict[str, int] = {}
    with log.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["kind"] == "apply":
                versions[row["version"]] = versions.get(row["version"], 0) + 1
    return list(versions.values())
