"""`paceline top` on run folders: the table, who is named, and what is said when there is nothing to see."""

import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from paceline import cli
from paceline.local.display import summary
from paceline.views import formatting, top, worker_table
from paceline.views.sources import local_process, selection, status_answer
from paceline.views.sources.training_source import Snapshot
from paceline_core.errors import SpecError

from .made import VERDICT, a_result, a_run, a_status, a_worker, serving, straggling


def shown(what: RenderableType, width: int = 132) -> str:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False, color_system=None).print(what)
    return file.getvalue()


def seen(found: dict[str, Any], width: int = 132, by_lag: bool = True, **snapshot: Any) -> str:
    it = Snapshot("Running", status=status_answer.read(found, "x"), **snapshot)
    return shown(top.page("runs/x", it, top.Options(by_lag=by_lag), width), width)


# the table


@pytest.mark.parametrize(
    ("width", "there", "gone"),
    [
        (140, ["gradient latency", "phases of a step", "lag", "loss", "step time", "makes the others wait 97%"], []),
        (80, ["lag", "phases of a step", "makes the others wait 97%"], ["gradient latency", "loss"]),
        (55, ["worker-2", "makes the others wait 97%"], ["phases of a step", "step time"]),
    ],
)
def test_columns_go_when_there_is_no_room_and_the_verdict_stays(width: int, there: list[str], gone: list[str]) -> None:
    text = shown(worker_table.table(status_answer.read(straggling(), "x"), width), width)
    assert [word for word in there if word not in text] == []
    assert [word for word in gone if word in text] == []
    assert "…" not in text


def test_columns_without_a_value_are_left_out() -> None:
    text = shown(worker_table.table(status_answer.read(a_status(), "x"), 140), 140)
    assert "staleness" not in text
    assert "rejected" not in text
    stale = a_status([a_worker(0, lag_seconds=None, staleness=2.5, rejected=3)], strategy="Asynchronous")
    text = shown(worker_table.table(status_answer.read(stale, "x"), 140), 140)
    assert "staleness" in text
    assert "rejected" in text
    assert "lag" not in text


def test_a_bar_divides_its_letters_as_the_step_is_divided() -> None:
    assert worker_table.bar({"forward": 0.5, "wait": 0.25, "send": 0.25}).plain == "f" * 8 + "s" * 4 + "w" * 4
    assert worker_table.bar({}).plain == ""
    assert len(worker_table.bar({"data": 1e-9, "forward": 1.0, "other": 1e-9}).plain) == 16
    workers = status_answer.read(a_status([a_worker(0, phases={"forward": 1.0, "wait": 1.0})]), "x").workers
    assert worker_table.legend(workers).plain == "f forward  w wait"


def test_workers_are_sorted_by_lag_or_by_number_and_the_worst_of_many_are_shown() -> None:
    many = a_status([a_worker(w, lag_seconds=0.02 if w == 70 else 0.001, step=90 + w % 20) for w in range(100)])
    text = seen(many)
    rows = [line.split()[1] for line in text.splitlines() if line.startswith("│")]
    assert len(rows) == 40
    assert rows[0] == "worker-70"
    assert "and 60 more: step 90 to 109, median step time 40.0 ms" in text
    by_number = [line.split()[1] for line in seen(many, by_lag=False).splitlines() if line.startswith("│")]
    assert "worker-70" in by_number
    assert by_number == sorted(by_number, key=lambda name: int(name.removeprefix("worker-")))


def test_the_page_says_who_makes_whom_wait_since_when_at_what_cost_and_why() -> None:
    found = straggling()
    found["verdict"] = VERDICT | {"since": time.time() - 45}
    text = seen(found, width=200)
    assert "worker-2 makes the others wait since " in text
    assert (
        "(45.0 s): 97% of all waiting, 28.0 ms in each round; it costs 38% of the throughput; cause: its computing"
        in text
    )
    assert "goodput 70% of 20.0 s, lost to startup 4.0 s, straggler 2.0 s" in text
    assert "step 100 of 330, 100 updates, about 9.2 s left" in text


@pytest.mark.parametrize(
    ("cause", "words_"),
    [("data", "its data"), ("compute", "its computing"), ("send", "its network"), ("unknown", "not known")],
)
def test_a_cause_in_words(cause: str, words_: str) -> None:
    verdict = status_answer.VerdictAnswer.model_validate(VERDICT | {"cause": cause})
    assert formatting.waiting(verdict, past=True).endswith(f"; it cost 38% of the throughput; cause: {words_}")


def test_rejections_are_told_by_reason() -> None:
    found = a_status([a_worker(0, rejected=7, rejected_by_reason={"stale": 5, "nonfinite": 2}), a_worker(1)])
    assert "7 gradients rejected: stale 5, nonfinite 2" in seen(found)


def test_what_a_pod_says_cannot_command_the_terminal() -> None:
    found = a_status([a_worker(0, state="\x1b[2Jlost", verdicts=["[red]\x07slow"])], training="\x1b]0;evil\x07")
    text = seen(found)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]?slow" in text  # shown as it is, not obeyed as markup


@pytest.mark.parametrize("rubbish", [None, [], {}, {"training": "x"}, a_status([{"worker": "zero"}]), {"workers": 3}])
def test_an_answer_that_is_no_status_is_a_sentence(rubbish: Any) -> None:
    with pytest.raises(SpecError, match=r"^somewhere: answered something that is no status"):
        status_answer.read(rubbish, "somewhere")


def test_a_status_of_another_version_is_read() -> None:
    found = status_answer.read(
        {"training": "x", "strategy": "S", "workers": [{"worker": 0, "new": 1}], "newer": {}}, "x"
    )
    assert found.workers[0].name == "worker-0"
    assert found.goodput is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.0123, "12.3 ms"), (4.56, "4.6 s"), (300, "5 min"), (9000, "2.5 h"), (float("nan"), "")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert formatting.duration(seconds) == text


def test_a_run_names_the_next_step_and_what_the_straggler_cost() -> None:
    lines = summary(a_result(straggling(), folder="runs/x"))
    assert lines[2].startswith("worker-2 made the others wait: 97% of all waiting")
    assert lines[-1] == "everything about this run is in runs/x; as a page: paceline report runs/x"


# run folders


def test_the_newest_run_is_taken_or_the_newest_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serving({"/status": (200, a_status())}) as address:
        a_run(Path("runs/a"), endpoints={"status": f"{address}/status"})
        a_run(Path("runs/b"), result=a_result(a_status()), endpoints={"status": f"{address}/status"})
        a_run(Path("runs/c"), endpoints={"status": "http://127.0.0.1:9/status"})
        for age, name in enumerate("abc"):
            os.utime(f"runs/{name}/manifest.yaml", (age, age))
        assert selection.find(None, None, going_on_first=True).name == "runs/a"
        assert selection.find(None, None).name == "runs/c"
    assert selection.find(None, None, going_on_first=True).name == "runs/c"  # none goes on any more
    assert selection.find("b", None).name == "runs/b"
    assert selection.find("runs/b", None).name == "runs/b"


def test_a_look_at_a_run_in_each_state(tmp_path: Path) -> None:
    with serving({"/status": (200, a_status())}) as address:
        run = a_run(tmp_path / "on", endpoints={"status": f"{address}/status"})
        assert run.snapshot().phase == "Running"
        assert run.snapshot().status == status_answer.read(a_status(), "x")
    gone = run.snapshot()
    assert (gone.phase, gone.lost, gone.ended) == ("Unknown", True, False)
    assert "nothing answers" in gone.message
    error = {"replica": "worker-1", "message": "ZeroDivisionError: division by zero", "traceback": "", "victims": []}
    failed = a_run(tmp_path / "failed", result=a_result(a_status(), "Failed", error=error)).snapshot()
    assert (failed.phase, failed.message) == ("Failed", "worker-1: ZeroDivisionError: division by zero")
    assert failed.ended
    assert failed.status is not None  # from result.json, as there is no status_answer.json
    assert a_run(tmp_path / "empty").snapshot().message == "it has neither endpoints.json nor result.json"


def test_a_run_that_waits_for_its_workers_says_for_whom(tmp_path: Path) -> None:
    with serving({"/status": (200, a_status(version=0, missing=[1, 3]))}) as address:
        snapshot = a_run(tmp_path, endpoints={"status": f"{address}/status"}).snapshot()
    assert snapshot.phase == "Starting"
    assert snapshot.message == "waiting for worker-1, worker-3 to call paceline.distribute()"


def test_a_run_whose_processes_begin_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_process, "SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # `paceline run` listens for the processes it starts
        run = a_run(tmp_path, endpoints={"status": f"http://127.0.0.1:{listener.getsockname()[1]}/status"})
        assert (run.snapshot().phase, run.snapshot().lost) == ("Starting", False)
        assert run.goes_on()
    assert (run.snapshot().phase, run.snapshot().lost) == ("Unknown", True)
    assert not run.goes_on()


# the command


def test_top_prints_once_when_the_output_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run(tmp_path / "x", result=a_result(straggling()), status=straggling())
    assert cli.main(["top", str(tmp_path / "x")]) == 0
    text = capsys.readouterr().out
    assert "digits  Succeeded" in text
    assert "worker-2 made the others wait" in text
    assert cli.main(["top", str(tmp_path / "x"), "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["phase"] == "Succeeded"
    assert told["status"]["verdict"]["worker"] == 2
    assert told["goodput"]["productive"] == 14.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["top"], "there is no run in ./runs: name a run folder, or a training in the cluster"),
        (["top", "no/such"], "no/such: is not the folder of a run (there is no manifest.yaml in it)"),
        (["top", "-n", "team"], "-n team: name the training in that namespace, too"),
        (["top", "digits"], "there is no run folder digits, and no cluster to ask for it: kubectl is not on the PATH"),
        (["top", "digits", "-n", "team"], "team/digits: kubectl is not on the PATH"),
        (["trace", "empty"], "empty: has no traces: the processes write them to traces/ when they end"),
        (["trace", "still"], "still: its processes have told of no step"),
        (["report", "digits"], "digits: is not the folder of a run (there is no manifest.yaml in it)"),
        (["top", "broken"], "broken/result.json: cannot be read: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_errors_are_a_sentence_and_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    a_run(Path("empty"), result=a_result(a_status()))
    a_run(Path("broken"))
    Path("broken/result.json").write_text("")
    a_run(Path("still"), result=a_result(a_status()))
    Path("still/traces").mkdir()
    Path("still/traces/worker-0.json").write_text(json.dumps({"replica": "worker-0", "spans": [], "updates": []}))
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", message + "\n")


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    a_run(tmp_path / "x", result=a_result(straggling()), status=straggling())
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "paceline.cli", "top", str(tmp_path / "x")]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


class Terminal:
    """A program that believes it runs on a terminal."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        variables = os.environ | {"COLUMNS": "120", "LINES": "40", "TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "paceline.cli", *arguments], stdin=slave, stdout=slave, stderr=slave, env=variables
        )
        os.close(slave)
        self.text = ""

    def read_until(self, words_: str, times: int = 1) -> None:
        while self.text.count(words_) < times:
            assert self._read(), self.text

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait(timeout=30)
        os.close(self._master)

    def wait(self) -> int:
        while self._read():
            pass
        return self.process.wait(timeout=30)

    def _read(self) -> bool:
        try:
            self.text += os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # the program has ended
            return False
        return True


def test_ctrl_c_is_the_way_to_leave_top(tmp_path: Path) -> None:
    with serving({"/status": (200, straggling())}) as address:
        a_run(tmp_path / "x", endpoints={"status": f"{address}/status"})
        with Terminal("top", str(tmp_path / "x")) as terminal:
            terminal.read_until("worker-2 makes the others wait", times=3)  # it renews itself
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.wait() == 0
    assert "Traceback" not in terminal.text


def test_top_ends_with_the_run(tmp_path: Path) -> None:
    with serving({"/status": (200, straggling())}) as address:
        folder = tmp_path / "x"
        a_run(folder, endpoints={"status": f"{address}/status"})
        with Terminal("top", str(folder)) as terminal:
            terminal.read_until("makes the others wait")
            (folder / "new").write_text(json.dumps(a_result(straggling())))
            (folder / "new").rename(folder / "result.json")
            assert terminal.wait() == 0
    assert "Succeeded" in terminal.text
    assert "worker-2 made the others wait" in terminal.text
