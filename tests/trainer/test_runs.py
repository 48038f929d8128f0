"""Whole runs: who is named, replay, Ctrl-C, and a runner that is killed."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from paceline.local.watchdog import members
from paceline_core.modes import MODES

from .conftest import Run, command, environment, manifest, write

SCRIPT = """
import time, torch, paceline
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
model, optimizer = paceline.distribute(model, optimizer, total_steps=STEPS)
generator = torch.Generator().manual_seed(paceline.rank())
for step in range(STEPS):
    x = torch.randn(8, 32, generator=generator)
    optimizer.zero_grad()
    loss = model(x).square().mean()
    time.sleep(PAUSE)
    loss.backward()
    optimizer.step()
    paceline.report(loss=loss)
"""


def script(steps: int, pause: float) -> str:
    return SCRIPT.replace("STEPS", str(steps)).replace("PAUSE", str(pause))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["Synchronous", "AllReduce"])
def test_the_straggler_is_named(run: Run, strategy: str) -> None:
    outcome = run(script(120, 0.01), "--slow", "worker-2=30ms", strategy=strategy, workers=4)
    assert outcome.code == 0, outcome.output
    assert "worker-2 made the others wait" in outcome.output
    assert outcome.result["verdict"]["worker"] == 2
    assert outcome.result["verdict"]["lag_share"] > 0.8
    assert 0.02 < outcome.result["verdict"]["lag_seconds"] < 0.045
    assert [w["verdicts"] for w in outcome.result["workers"]] == [[], [], ["makes the others wait"], []]


@pytest.mark.slow
def test_the_straggler_is_slow_and_stale_but_nobody_waits_in_asynchronous(run: Run) -> None:
    server = {"strategy": "Asynchronous", "asynchronous": {"maxStaleness": 100}}
    outcome = run(script(120, 0.01), "--slow", "worker-2=30ms", workers=4, parameterServer=server)
    assert outcome.code == 0, outcome.output
    assert outcome.result["verdict"] is None
    assert [w["verdicts"] for w in outcome.result["workers"]] == [[], [], ["slow", "stale"], []]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", MODES)
def test_nobody_is_named_without_a_straggler(run: Run, strategy: str) -> None:
    outcome = run(script(120, 0.01), strategy=strategy, workers=4)
    assert outcome.code == 0, outcome.output
    assert outcome.result["verdict"] is None
    assert [w["verdicts"] for w in outcome.result["workers"]] == [[], [], [], []]


@pytest.mark.slow
def test_only_the_slow_worker_is_rejected(run: Run) -> None:
    server = {"replicas": 2, "strategy": "Asynchronous", "asynchronous": {"maxStaleness": 9, "onStale": "NextBatch"}}
    outcome = run(script(150, 0.02), "--slow", "worker-3=10x", workers=4, parameterServer=server)
    assert outcome.code == 0, outcome.output
    rejected = {w["worker"]: w["rejected_by_reason"] for w in outcome.result["workers"]}
    assert rejected[3].get("stale", 0) > 5
    assert [rejected[w] for w in (0, 1, 2)] == [{}, {}, {}]


@pytest.mark.slow
@pytest.mark.timeout(300)  # four runs, one after the other
def test_replay_is_bit_for_bit_and_two_free_runs_differ(run: Run) -> None:
    asked = {"workers": 4, "servers": 2, "strategy": "Asynchronous"}
    first = run(script(60, 0), **asked)
    again = [run(script(60, 0), "--replay", str(first.folder), **asked) for _ in range(2)]
    assert [o.code for o in (first, *again)] == [0, 0, 0], again[0].output
    hashes = {o.result["weights_sha256"] for o in (first, *again)}
    assert len(hashes) == 1
    assert again[0].result["replay_of"] == str(first.folder)
    free = run(script(60, 0), **asked)
    assert free.result["weights_sha256"] not in hashes


@pytest.mark.slow
@pytest.mark.parametrize("servers", [1, 2])
def test_a_replay_of_another_script_ends_and_says_where(run: Run, servers: int) -> None:
    asked = {"workers": 2, "servers": servers, "strategy": "Asynchronous"}
    first = run(script(20, 0), **asked)
    began = time.monotonic()
    again = run(script(21, 0), "--replay", str(first.folder), **asked)
    assert again.code == 1
    assert re.search(r"step 21 of worker-\d is not in the recorded run", again.output), again.output
    assert time.monotonic() - began < 60, "nobody waits for the end of a time-out"


@pytest.mark.slow
def test_the_phases_add_up_and_the_folder_is_whole(run: Run) -> None:
    outcome = run(script(40, 0.005), workers=2, servers=2)
    assert outcome.code == 0, outcome.output
    names = {p.name for p in outcome.folder.iterdir()}
    assert names >= {"manifest.yaml", "logs", "steps.csv", "arrivals-ps-0.csv", "weights.safetensors", "result.json"}
    header, *rows = (outcome.folder / "steps.csv").read_text().splitlines()
    columns = header.split(",")
    assert len(rows) == 80
    for row in rows:
        value = dict(zip(columns, row.split(","), strict=True))
        phases = sum(float(value[c]) for c in columns[columns.index("data") :])
        assert abs(phases - float(value["wall"])) < 0.02 * float(value["wall"])
        assert value["loss"]


@pytest.mark.slow
def test_what_only_a_cluster_can_tell_is_left_as_it_is_here(tmp_path: Path) -> None:
    asked = manifest(["python", "train.py"], workers=1)
    secret = {"secretKeyRef": {"name": "tokens", "key": "hub"}}
    asked["spec"]["workers"]["template"]["spec"]["containers"][0]["env"] = [
        {"name": "TOKEN", "valueFrom": secret},
        {"name": "OTHER_TOKEN", "valueFrom": secret},
        {"name": "GIVEN", "value": "by the file"},
        {"name": "EMPTY"},
    ]
    shown = "import os; print([os.environ.get(n) for n in ('TOKEN', 'OTHER_TOKEN', 'GIVEN', 'EMPTY')])\n"
    file = write(tmp_path, shown + script(1, 0), asked)
    ours = {"TOKEN": "mine", "GIVEN": "not this", "EMPTY": "nor this"}
    done = subprocess.run(
        command(file, tmp_path / "run"), cwd=tmp_path, env=environment() | ours, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip
    assert "[worker-0] ['mine', None, 'by the file', '']" in done.stdout, done.stdout + done.stderr
    assert "has no meaning on one machine: valueFrom of the variables TOKEN, OTHER_TOKEN" in done.stdout


class Running:
    """A run that goes on until the test ends it."""

    def __init__(self, tmp_path: Path, text: str) -> None:
        self.folder = tmp_path / "run"
        file = write(tmp_path, text, manifest(["python", "train.py"], workers=2))
        self.process = subprocess.Popen(
            command(file, self.folder, "-o", "json"), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
        )
        self.urls: dict[str, str] = {}

    def wait_for(self, word: str) -> None:
        """Read events until one holds `word`."""
        import json

        assert self.process.stdout
        for line in self.process.stdout:
            event = json.loads(line)
            if event["event"] == "start":
                self.urls = event["metrics"]
            if word in line:
                return
        raise AssertionError(f"ended without {word}")

    def training_id(self) -> str:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    variables = (entry / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if f"PACELINE_OUTPUT={self.folder}".encode() in variables:
                    found = [v for v in variables if v.startswith(b"PACELINE_TRAINING_ID=")]
                    return found[0].split(b"=")[1].decode()
        raise AssertionError("no process of the run")


def gone(training_id: str) -> None:
    limit = time.monotonic() + 20
    while members(training_id):
        assert time.monotonic() < limit, f"still alive: {members(training_id)}"
        time.sleep(0.05)


GRANDCHILD = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], start_new_session=True)\n"


@pytest.mark.slow
def test_nothing_outlives_a_runner_that_is_killed(tmp_path: Path) -> None:
    running = Running(tmp_path, GRANDCHILD + script(100_000, 0.01))
    running.wait_for('"loss": 0')
    training_id = running.training_id()
    assert len(members(training_id)) >= 5  # server, 2 workers, 2 grandchildren
    running.process.kill()
    running.process.wait()
    gone(training_id)
    assert running.process.stdout
    running.process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_everything(tmp_path: Path, times: int) -> None:
    running = Running(tmp_path, script(100_000, 0.01))
    running.wait_for('"loss": 0')
    training_id = running.training_id()
    for _ in range(times):
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert running.process.wait(timeout=30) == 130
    gone(training_id)
    assert running.process.stdout
    assert '"result": "Interrupted"' in running.process.stdout.read()
    running.process.stdout.close()
    assert (running.folder / "weights.safetensors").exists() or times == 2


@pytest.mark.slow
def test_metrics_are_served_by_each_process(tmp_path: Path) -> None:
    running = Running(tmp_path, script(100_000, 0.01))
    running.wait_for('"step": 2')
    try:
        pages = {}
        for name, url in running.urls.items():
            with urllib.request.urlopen(url, timeout=5) as answer:
                pages[name] = answer.read().decode()
        assert 'paceline_server_gradients_applied_total{server="0",training="test",worker="1"}' in pages["ps-0"]
        assert "paceline_server_worker_lag_seconds_total" in pages["ps-0"]
        assert 'paceline_server_worker_staleness_steps{server="0",training="test",worker="1"} 0.0' in pages["ps-0"]
        assert 'paceline_server_round_duration_seconds_count{server="0",training="test"} 0.0' not in pages["ps-0"]
        assert 'paceline_worker_phase_seconds_total{phase="forward"' in pages["worker-1"]
        assert "paceline_worker_gradient_latency_seconds_bucket" in pages["worker-0"]
    finally:
        running.process.send_signal(signal.SIGINT)
        running.process.communicate(timeout=30)


def test_a_script_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(script(3, 0) + "\nprint(paceline.world_size(), paceline.last_step())\n")
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PACELINE")}
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "1 None\n", done.stderr
