"""`paceline trace`: one timeline of all processes."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from paceline import cli
from paceline.views import trace_command
from paceline.views.sources.training_source import Process
from paceline.views.trace_events import TraceAnswer, timeline
from paceline_core.errors import SpecError
from paceline_core.modes import MODES

from .conftest import command, environment, manifest, write
from .made import a_run, a_status, a_trace, events, serving
from .test_runs import script


def merged(*found: dict[str, Any], **given: Any) -> Any:
    return timeline([TraceAnswer.model_validate(f) for f in found], "runs/x", **given)


def slices(made: list[dict[str, Any]], process: int) -> list[tuple[str, int, int]]:
    return [(e["name"], e["ts"], e["dur"]) for e in made if e["ph"] == "X" and e["pid"] == process]


def test_clocks_are_aligned_and_time_begins_at_0() -> None:
    made = merged(a_trace("worker-1", offset=-7.5), a_trace("ps-0"), a_trace("worker-0", offset=3.25)).events
    assert slices(made, 1) == [("update 1", 11_000, 1_000), ("update 2", 21_000, 1_000)]
    assert slices(made, 2)[:3] == [("step 1", 0, 10_000), ("forward", 0, 5_000), ("send", 5_000, 5_000)]
    assert slices(made, 3) == slices(made, 2)


def test_replicas_are_named_and_ordered() -> None:
    found = [a_trace(name) for name in ("worker-10", "worker-2", "ps-1", "ps-0")]
    made = merged(*found).events
    assert [e["args"]["name"] for e in made if e["name"] == "process_name"] == ["ps-0", "ps-1", "worker-2", "worker-10"]
    assert [e["args"]["sort_index"] for e in made if e["name"] == "process_sort_index"] == [1, 2, 3, 4]


def test_arrows_lead_from_a_push_to_the_update_that_holds_it() -> None:
    found = merged(a_trace("ps-0"), a_trace("ps-1"), *(a_trace(f"worker-{w}") for w in range(3)))
    assert found.arrows == 2 * 2 * 3
    starts = {e["id"]: e for e in found.events if e["ph"] == "s"}
    ends = {e["id"]: e for e in found.events if e["ph"] == "f"}
    assert starts.keys() == ends.keys()
    for number, start in starts.items():
        sends = [s for s in slices(found.events, start["pid"]) if s[0] == "send"]
        assert any(begin <= start["ts"] < begin + dur for _, begin, dur in sends)  # within, not at the end
        assert any(ends[number]["ts"] == ts for name, ts, _ in slices(found.events, ends[number]["pid"]))
        assert ends[number]["bp"] == "e"
    assert found.crossed == 0


def test_slices_of_a_thread_lie_within_one_another_or_apart() -> None:
    """Perfetto drops a slice that begins in another one and ends after it."""
    spans = [["forward", 100 + i / 3e6, 100 + (i + 1) / 3e6, i // 4] for i in range(4000)]
    made = merged({"replica": "worker-0", "offset": 0.123456789, "spans": spans, "updates": []}).events
    open_: list[int] = []
    for _, begin, dur in sorted(slices(made, 1), key=lambda s: (s[1], -s[2])):
        while open_ and open_[-1] <= begin:
            open_.pop()
        assert not open_ or begin + dur <= open_[-1]
        open_.append(begin + dur)


def test_an_arrow_that_would_go_back_in_time_is_left_out_and_told() -> None:
    found = merged(a_trace("ps-0", offset=0.0), a_trace("worker-0", begin=101.0))
    assert (found.arrows, found.crossed) == (0, 2)
    assert "2 arrows left out, because the clocks do not agree well enough" in found.summary()


def test_of_too_many_events_the_newest_stay() -> None:
    found = merged(a_trace("worker-0", steps=100), most=20)
    names = [name for name, _, _ in slices(found.events, 1) if name.startswith("step")]
    assert names == [f"step {s}" for s in range(91, 101)]
    assert min(ts for _, ts, _ in slices(found.events, 1)) == 0
    assert "older ones found no room" in found.summary()
    cut = TraceAnswer.model_validate(a_trace("worker-0", steps=100)).newest(21)
    assert {s for _, _, _, s in cut.spans} == set(range(91, 101))  # step 90 is not there whole
    assert "older ones found no room" in timeline([cut], "x").summary()


def test_processes_that_do_not_answer_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> Any:
        raise SpecError(["it is gone"])

    asked = [
        Process("ps-0", lambda: a_trace("ps-0")),
        Process("worker-0", refuse),
        Process("worker-1", lambda: {"a": 1}),
    ]
    found, problems = trace_command.collect(asked)
    assert [t.replica for t in found] == ["ps-0"]
    assert problems[0] == "worker-0: it is gone"
    assert problems[1].startswith("worker-1: answered something that is no trace")


def test_a_running_run_is_asked_and_a_name_with_gz_compresses(tmp_path: Path, capsys: Any) -> None:
    with serving({"/status": (200, a_status()), "/trace": (200, a_trace("worker-0"))}) as address:
        endpoints = {"status": f"{address}/status", "metrics": {"worker-0": f"{address}/metrics"}}
        a_run(tmp_path / "x", endpoints=endpoints)
        assert cli.main(["trace", str(tmp_path / "x"), "-o", str(tmp_path / "t.json.gz")]) == 0
    assert {e["name"] for e in events(tmp_path / "t.json.gz")} >= {"step 1", "send"}
    assert "ui.perfetto.dev" in capsys.readouterr().out
    a_run(tmp_path / "y", endpoints=endpoints)
    (tmp_path / "y/traces").mkdir()
    (tmp_path / "y/traces/worker-0.json").write_text(json.dumps(a_trace("worker-0")))
    assert cli.main(["trace", str(tmp_path / "y"), "-o", str(tmp_path / "no/t.json")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/no/t.json: cannot be written: No such file or directory\n"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", MODES)
def test_a_real_run_is_seen_while_it_goes_on_and_traced_at_its_end(strategy: str, tmp_path: Path, capsys: Any) -> None:
    folder, steps = tmp_path / "run", 150
    asked = manifest(["python", "train.py"], strategy=strategy, workers=3, servers=2)
    file = write(tmp_path, script(steps, 0.01), asked)
    running = subprocess.Popen(
        [*command(file, folder), "--slow", "worker-1=20ms"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout
    limit = time.monotonic() + 60
    while told(folder, capsys).get("status", {}).get("version", 0) < 20:
        assert time.monotonic() < limit, running.stdout.read()
        time.sleep(0.1)
    assert told(folder, capsys)["phase"] == "Running"
    assert cli.main(["trace", str(folder), "-o", str(tmp_path / "early.json")]) == 0
    assert check_trace(events(tmp_path / "early.json"), strategy) < steps
    output, _ = running.communicate(timeout=100)
    assert f"paceline report {folder}" in output
    assert told(folder, capsys)["phase"] == "Succeeded"
    assert cli.main(["trace", str(folder)]) == 0
    assert check_trace(events(folder / "trace.json"), strategy) == steps


def told(folder: Path, capsys: Any) -> dict[str, Any]:
    """What `paceline top` tells, once there is something."""
    capsys.readouterr()
    if not (folder / "endpoints.json").exists() or cli.main(["top", str(folder), "-o", "json"]):
        return {}
    return {k: v for k, v in json.loads(capsys.readouterr().out).items() if v is not None}


def check_trace(made: list[dict[str, Any]], strategy: str) -> int:
    """Whether it holds together; gives the last step in it."""
    names = {e["pid"]: e["args"]["name"] for e in made if e["name"] == "process_name"}
    servers = ["coordinator-0"] if MODES[strategy].ring else ["ps-0", "ps-1"]
    assert list(names.values()) == [*servers, "worker-0", "worker-1", "worker-2"]
    assert min(e["ts"] for e in made if "ts" in e) == 0
    last = max(e["args"]["step"] for e in made if e.get("cat") == "step")
    if MODES[strategy].ring:
        assert not [e for e in made if e["ph"] == "s"]
        return last
    updates = [e for e in made if e.get("cat") == "update"]
    pushes, knobs = [len(e["args"]) - 1 for e in updates], MODES[strategy].knobs
    assert max(pushes) == (knobs.quorum or 3)
    assert knobs.quorum not in (None, 1) or min(pushes) == max(pushes), "other quorums shrink when workers leave"
    arrows = [e for e in made if e["ph"] == "s"]
    assert len(arrows) > 0.9 * sum(pushes)  # of the newest, the worker had not yet told of its step
    late = {"worker-1"} if knobs.rejects_late else set()  # its gradients may all have come too late so far
    assert {names[e["pid"]] for e in arrows} | late == {"worker-0", "worker-1", "worker-2"}
    return last
