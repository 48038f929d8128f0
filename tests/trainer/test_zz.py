import pytest, os
from pathlib import Path
from .conftest import manifest
from .test_replaced_worker import SCRIPTS, CASES, PLACES
from .test_restarts import ended, started
ALL = [(m, s, p) for m in os.environ.get("MODES","AllReduce").split() for s in SCRIPTS for p in PLACES if os.environ.get("ONLY","") in s + " " + p]
@pytest.mark.timeout(200)
@pytest.mark.parametrize(("mode", "script", "place"), ALL)
def test_ring(tmp_path, mode, script, place):
    text, alone = SCRIPTS[script]
    asked = manifest(["python", "train.py"], mode, workers=2, checkpoint={"everySteps": 3})
    outcomes = []
    for name, dies in (("undisturbed", ""), ("killed", place)):
        (tmp_path / name).mkdir()
        outcomes.append(ended(started(tmp_path / name, asked, text, DIES=dies), tmp_path / name))
        print(outcomes[-1].output)
        assert outcomes[-1].code == 0, outcomes[-1].output
    undisturbed, outcome = outcomes
    assert outcome.result["weights_sha256"] == undisturbed.result["weights_sha256"]
    assert [(r["replica"], r["alone"]) for r in outcome.result["restarts"]] == [("worker-1", alone)]
