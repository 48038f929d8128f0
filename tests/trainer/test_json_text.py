"""No NaN in any JSON that leaves Paceline: most readers of JSON refuse the whole of it."""

import json
import math
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from paceline import failure, http_pages, json_text, metrics
from paceline.local.display import JsonDisplay, TextDisplay, summary
from paceline.process_trace import ProcessTrace
from paceline.views.report import command
from paceline.views.sources import status_answer
from paceline.views.top import Options, top

from .inprocess import Served, Trainee
from .made import a_result, a_run, a_status, a_worker

SOURCE = Path(__file__).parents[2] / "trainer/paceline"
BETWEEN_PROCESSES = {  # both ends are Python's, which reads what it writes; NaN has to arrive as NaN
    "json_text.py", "wire/frames.py", "optimizer_state.py", "worker/collectives/json_values.py", "worker/all_reduce/ring.py",
}  # fmt: skip
REFUSES_NAN = {
    "checkpoints/checkpoint_manifest.py",
    "checkpoints/state_values.py",
}  # which has a spelling of its own for it
HASHED = {"server/checkpoints/completion.py"}  # a specification, which is finite
NOT_FINITE = [math.nan, math.inf, -math.inf]


def strictly(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_what_is_not_finite_is_null(value: float) -> None:
    found = json_text.dumps({"a": value, "b": [1, (value, 2.5)], "c": {"d": value}, "e": "nan", "f": True, "g": None})
    assert strictly(found) == {"a": None, "b": [1, [None, 2.5]], "c": {"d": None}, "e": "nan", "f": True, "g": None}


def test_json_is_written_in_one_place() -> None:
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if re.search(r"\bjson\.dumps?\(|\bimport dumps\b|dump_json\(", path.read_text())
    }
    assert found == BETWEEN_PROCESSES | REFUSES_NAN | HASHED
    for name in REFUSES_NAN:
        text = (SOURCE / name).read_text()
        assert text.count("json.dumps(") == text.count("allow_nan=False"), name


def with_losses(value: float | None) -> dict[str, Any]:
    workers = [
        a_worker(w, loss=value, step_seconds=value, reported={"loss": value, "accuracy": value}) for w in range(4)
    ]
    return a_status(workers)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_page_a_trace_a_summary_and_a_line(value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = with_losses(value)
    web = http_pages.serve("127.0.0.1:0", metrics.of_server("test", 0, metrics.DETAILED), {"/status": lambda: status})
    with urllib.request.urlopen(f"http://127.0.0.1:{web.server_address[1]}/status", timeout=10) as answer:
        page = strictly(answer.read().decode())
    web.shutdown()
    web.server_close()
    assert page == with_losses(None)
    status_answer.read(page, "here")
    failure.write_summary({"loss": value, "reported": {"a": value}}, str(tmp_path / "log"))
    assert strictly((tmp_path / "log").read_text()) == {"summary": {"loss": None, "reported": {"a": None}}}
    trace = ProcessTrace("worker-0", 0.0, offset=value)
    trace.write(str(tmp_path))
    assert strictly((tmp_path / "traces/worker-0.json").read_text())["offset"] is None
    JsonDisplay().progress(status)
    top(a_run(tmp_path / "run", result=a_result(status), status=status), Options(output="json"))
    for line in capsys.readouterr().out.splitlines():
        strictly(line)


@pytest.mark.parametrize("value", [None, *NOT_FINITE])
def test_what_shows_a_run_takes_null(value: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = with_losses(value) | {"version": 100}
    run = a_run(tmp_path / "run", result=a_result(status, reported={"accuracy": value}), status=status)
    top(run, Options(once=True))
    display = TextDisplay()
    display.progress(status)
    display.result({**a_result(status, reported={"accuracy": value}), "folder": "here"})
    assert "accuracy not finite" in "\n".join(
        summary({**a_result(status, reported={"accuracy": value}), "folder": "x"})
    )
    assert "not finite" in command.page(run)[0]
    assert "accuracy not finite" in capsys.readouterr().out


def test_a_server_that_was_told_nan_writes_none(tmp_path: Path) -> None:
    served = Served(tmp_path)
    trainee = Trainee(served.address)
    trainee.steps(range(1))
    trainee.session.reporter.report({"loss": math.nan, "accuracy": math.inf})
    trainee.session.leave()
    served.stop()
    [worker] = strictly((tmp_path / "status.json").read_text())["workers"]
    assert (worker["loss"], worker["reported"]) == (None, {"loss": None, "accuracy": None})
