"""`paceline report`: what the page says, and that it needs nothing but a browser."""

import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from paceline import cli
from paceline.views.report import steps_csv
from paceline.views.sources import run_folders

from .made import VERDICT, a_result, a_row, a_run, a_status, a_worker, straggling, write_steps

ERROR = {
    "replica": "worker-1",
    "message": "ZeroDivisionError: <b>division</b> by zero",
    "traceback": "Traceback (most recent call last):\n  1 / 0\nZeroDivisionError: <script>alert(1)</script>",
    "victims": ["worker-0", "ps-0"],
}


def a_synchronous_run(folder: Path) -> run_folders.Run:
    """Four workers; worker-2 waits 1 ms in each step, the others 30."""
    run = a_run(folder, result=a_result(straggling()), status=straggling())
    write_steps(folder, [a_row(w, s, 0.001 if w == 2 else 0.03) for s in range(1, 101) for w in range(4)])
    return run


def an_asynchronous_run(folder: Path) -> run_folders.Run:
    """Of four workers worker-3 is slow, and every tenth gradient of it is rejected."""
    workers = [a_worker(w, lag_seconds=None, lag_share=None) for w in range(3)]
    slow = a_worker(3, lag_seconds=None, lag_share=None, verdicts=["slow", "stale"], rejected=10)
    found = a_status([*workers, slow], strategy="Asynchronous")
    run = a_run(folder, result=a_result(found), status=found)
    rows = [a_row(w, s, staleness=w) for s in range(1, 101) for w in range(3)]
    for s in range(1, 101):
        rejected = {"staleness": 12, "accepted": False, "reason": "stale"} if s % 10 == 0 else {}
        rows.append(a_row(3, s, 0.01, **rejected))
    write_steps(folder, rows)
    return run


def a_failed_run(folder: Path) -> run_folders.Run:
    """worker-1 failed; the log of steps ends in half a line."""
    run = a_run(folder, result=a_result(a_status(), "Failed", error=ERROR), status=a_status())
    write_steps(folder, [a_row(w, s) for s in range(1, 30) for w in range(4)], tail="3,30,30,18000")
    (folder / "logs").mkdir()
    (folder / "logs/worker-1.log").write_text("\n".join(f"line {i} <i>\x1b[31m" for i in range(100)))
    return run


def a_run_without_steps(folder: Path) -> run_folders.Run:
    """It was interrupted before the workers had joined."""
    return a_run(folder, result=a_result(a_status(version=0), "Interrupted", workers=[], goodput=None))


def a_killed_run(folder: Path) -> run_folders.Run:
    """Nobody wrote a result."""
    run = a_run(folder, endpoints={"status": "http://127.0.0.1:9/status"})
    write_steps(folder, [a_row(w, s) for s in range(1, 30) for w in range(4)])
    return run


def a_large_run(folder: Path) -> run_folders.Run:
    """Forty workers, 30,000 steps in all; worker-33 makes the others wait."""
    found = a_status([a_worker(w) for w in range(40)], overall_verdict=VERDICT | {"worker": 33})
    run = a_run(folder, result=a_result(found), status=found)
    manifest = (folder / "manifest.yaml").read_text().replace("replicas: 4", "replicas: 40")
    (folder / "manifest.yaml").write_text(manifest)
    dice = random.Random(7)
    rows = [a_row(w, s, 0.001 if w == 33 else dice.uniform(0.025, 0.03)) for s in range(1, 751) for w in range(40)]
    write_steps(folder, rows)
    return run


RUNS = [
    a_synchronous_run, an_asynchronous_run, a_failed_run, a_run_without_steps, a_killed_run, a_large_run,
]  # fmt: skip


def page(run: run_folders.Run) -> str:
    assert cli.main(["report", str(run.folder)]) == 0
    return (run.folder / "report.html").read_text()


class Reader(HTMLParser):
    """What a page loads, which elements it has, and the words on it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.polylines: list[int] = []  # points of each
        self._in = ""
        self.feed(text)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in = tag
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action", "data", "poster") or name.startswith("on"):
                self.loads.append(value or "")
            if tag == "polyline" and name == "points":
                self.polylines.append(len((value or "").split()))

    def handle_data(self, data: str) -> None:
        self.words += data + " "


def test_lag_is_what_a_worker_waited_less_than_the_median(tmp_path: Path) -> None:
    read = steps_csv.read(a_synchronous_run(tmp_path).folder, 4, rounds=True)
    assert read.rounds == 100
    assert read.workers[2].lag == pytest.approx(100 * 0.029)
    assert read.workers[0].lag == 0
    assert read.workers[1].phases["wait"] == pytest.approx(3.0)
    assert read.unreadable == 0


@pytest.mark.parametrize("make", RUNS, ids=lambda f: f.__name__)
def test_the_page_needs_no_network_and_no_script(make: Any, tmp_path: Path) -> None:
    text = page(make(tmp_path / "run"))
    read = Reader(text)
    assert [load for load in read.loads if load != "data:,"] == []
    assert not {"script", "iframe", "object", "embed", "img", "base"} & set(read.tags)
    assert read.tags.count("link") == 1
    assert not re.search(r"@import|@font-face|url\(|expression\(", text)
    assert len(text) < 700_000
    assert max(read.polylines, default=0) <= 500


@pytest.mark.parametrize(
    ("make", "there", "gone"),
    [
        (a_synchronous_run,
         ["Succeeded after 20.0 s.", "worker-2 made the others wait: 97% of all waiting", "cause: its computing",
          "Goodput 70% of 20.0 s", "Sum over 100 steps", "2.9 s, 100%", "accuracy 0.99", "torch 2.13"],
         ["Staleness", "Failure"]),
        (an_asynchronous_run,
         ["worker-3 was slow and stale.", "Nobody made the others wait", "Staleness", "10 of 400 gradients, 2.5%",
          "worker-3 10 10.0%", "Who was slow"],
         ["Who made whom wait", "Failure"]),
        (a_failed_run,
         ["Failed after 20.0 s: worker-1: ZeroDivisionError: <b>division</b> by zero.", "worker-1 failed first.",
          "Ended because of it: worker-0, ps-0.", "<script>alert(1)</script>", "line 99 <i>?[31m", "line 60",
          "of which 1 lines could not be read"],
         ["line 59 "]),
        (a_run_without_steps, ["Interrupted after 20.0 s.", "No worker told of a step", "Not measured in this run."], ["Failure"]),
        (a_killed_run, ["Unknown: nothing answers: it begins, ends, or was killed", "Gradient latency"], ["Failure"]),
        (a_large_run, ["the other 37 workers", "The worst 20 workers are shown, 20 others are not.", "worker-33 made"], []),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)  # fmt: skip
def test_the_page_says(make: Any, there: list[str], gone: list[str], tmp_path: Path) -> None:
    words = Reader(page(make(tmp_path / "run"))).words
    assert [text for text in there if text not in words] == []
    assert [text for text in gone if text in words] == []


def test_a_run_that_goes_on_can_be_reported(tmp_path: Path) -> None:
    run = a_killed_run(tmp_path)
    (tmp_path / "status.json").write_text(json.dumps(straggling(finished=False)))
    words = Reader(page(run)).words
    assert "worker-2 made the others wait" in words


def test_the_page_is_written_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_synchronous_run(tmp_path / "run")
    assert cli.main(["report", str(run.folder), "-o", str(tmp_path / "x.html")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/x.html: ")
    assert cli.main(["report", str(run.folder), "-o", str(tmp_path / "no/x.html")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/no/x.html: cannot be written: No such file or directory\n"


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium (Debian's package is chromium)")
@pytest.mark.parametrize("make", RUNS, ids=lambda f: f.__name__)
def test_a_browser_shows_it_without_a_complaint(make: Any, tmp_path: Path) -> None:
    """Every name leads nowhere, and what the browser shows is what was written."""
    run = make(tmp_path / "run")
    file = run.folder / "report.html"
    expected = Reader(page(run))
    done = subprocess.run(
        [
            str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND",
            "--enable-logging=stderr", f"--user-data-dir={tmp_path}/profile", "--window-size=1200,2000",
            f"--screenshot={tmp_path}/page.png", "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    assert (tmp_path / "page.png").stat().st_size > 20_000
    seen = Reader(done.stdout)
    assert seen.words == expected.words
    assert seen.tags.count("svg") == expected.tags.count("svg")
