"""A worker of a Synchronous training that is killed: another goes on where it was, and the others wait for it."""

import os
import random
import re
from pathlib import Path

import pytest

from .conftest import Outcome, manifest
from .test_checkpoints import SCRIPT, seen
from .test_restarts import ended, killed_when, started, steps_of

SAMPLE = int(os.environ.get("PACELINE_KILL_STEPS", "2"))  # kills; `make sweep` has more
STEPS = 21  # of each of the three workers
SLOW = SCRIPT.replace("    optimizer.zero_grad()", "    optimizer.zero_grad(); time.sleep(0.02)")
ASKED = manifest(["python", "train.py"], "Synchronous", workers=3, servers=2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    where = tmp_path_factory.mktemp("undisturbed")
    return ended(started(where, ASKED), where)


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.timeout(60 + 60 * SAMPLE)
def test_whichever_worker_is_killed_it_alone_is_replaced_and_the_weights_are_the_same(
    tmp_path: Path, undisturbed: Outcome
) -> None:
    seed = int(os.environ.get("PACELINE_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    chance = random.Random(seed)
    for number in range(SAMPLE):
        folder = tmp_path / str(number)
        folder.mkdir()
        worker, step = chance.randrange(3), chance.randrange(1, STEPS)
        print(f"killed around step {step}: worker-{worker}")
        runner = started(folder, ASKED, SLOW)
        killed_when(folder, runner, f"worker-{worker}", lambda: steps_of(folder, worker) >= step)  # noqa: B023
        outcome = ended(runner, folder)
        assert outcome.code == 0, outcome.output
        assert outcome.result["weights_sha256"] == undisturbed.result["weights_sha256"]
        assert [(it["replica"], it["alone"]) for it in outcome.result["restarts"]] in ([(f"worker-{worker}", True)], [])
        assert not (folder / "run/attempt-1").exists()
        for other in {0, 1, 2} - {worker}:  # each step once: nothing was begun anew
            assert seen(folder, other) == seen(undisturbed.folder.parent, other)
        assert dict.fromkeys(seen(folder, worker)) == dict.fromkeys(seen(undisturbed.folder.parent, worker))
        assert re.search(rf"worker-{worker} goes on where it was lost: after step \d+", outcome.output)
