"""Nothing that comes from outside and is shown can make the terminal do anything; a script's own lines may."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from paceline import cli
from paceline.local.display import TextDisplay
from paceline.terminal import printable, printable_lines
from paceline.views.sources import local_process
from tests.trainer.made import a_result, a_run, a_status, a_worker, serving

from .checks import check_output
from .folders import ESCAPE

FAILURE = {"replica": ESCAPE, "message": ESCAPE, "traceback": f"a\tb\n{ESCAPE}", "victims": []}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, ünïcödé and 漢字", "plain text, ünïcödé and 漢字"),
        ("\x1b[31m \x9b31m \x7f \x00 \r\n\t", "?[31m ?31m ? ? ???"),
        ("a\u202eb\u2066c\u200bd\u2028e\ufefff", "a?b?c?d?e?f"),
        ("\ud800", "?"),
        ("x" * 600, "x" * 500),
    ],
)
def test_what_a_terminal_would_obey_is_replaced(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_of_a_longer_text_the_last_lines_are_shown() -> None:
    assert printable_lines("a\nb\x0bc\n\td\x1b\n", 2) == "b?c\n    d?"


def test_a_run_shows_only_its_script_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    display = TextDisplay()
    display.start({"training": "t", "summary": "one", "folder": f"[red]{ESCAPE}", "status": "", "metrics": {},
                   "resumed_from": f"[red]{ESCAPE}", "resumed_step": 4})  # fmt: skip
    display.note(ESCAPE)
    display.progress(a_status([a_worker(0, state=ESCAPE, reported={ESCAPE: 1.0})], training=ESCAPE))
    display.failure(FAILURE)
    result = a_result(a_status(), reported={f"{ESCAPE}": 1.0}, error=FAILURE, folder=ESCAPE)
    display.result(result)
    out = capsys.readouterr().out
    check_output(out)
    assert "[red]?[31m" in out
    display.line("worker-0", "\x1b[32mgreen")
    assert "\x1b[32mgreen" in capsys.readouterr().out


def test_an_answer_that_is_no_status_does_not_end_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    TextDisplay().progress({"workers": []})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "page",
    [
        (200, json.dumps(a_status(training=ESCAPE, strategy=ESCAPE))),
        (200, "[" * 100_000),
        (200, f"<{ESCAPE}>"),
        (500, ESCAPE),
        (200, "[1]"),
    ],
)
@pytest.mark.parametrize("words", [["top", "--once"], ["top", "-o", "json"], ["report"], ["trace"]])
def test_an_answer_of_a_process(
    page: tuple[int, str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving({"/status": page, "/trace": page}) as address:
        a_run(tmp_path / "run", endpoints={"status": f"{address}/status", "metrics": {ESCAPE: f"{address}/metrics"}})
        assert cli.main([*words, str(tmp_path / "run")]) in (0, 2)
    out, err = capsys.readouterr()
    check_output(out + err)


def test_nobody_is_sent_elsewhere() -> None:
    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "/other")
            self.end_headers()
            asked.append(self.path)

        def log_message(self, *_: object) -> None:
            pass

    asked: list[str] = []
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        with pytest.raises(local_process.NoAnswer, match="Found"):
            local_process.get(f"http://127.0.0.1:{server.server_port}/status")
        server.shutdown()
        thread.join()
    assert asked == ["/status"]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "http://127.0.0.1:1@example.org/status",
        "http://127.0.0.1:1/a/../b",
        "ftp://127.0.0.1:1/x",
        "",
    ],
)
def test_nobody_else_is_asked(url: str) -> None:
    with pytest.raises(local_process.NoAnswer, match="is not the address of a process of a run"):
        local_process.get(url)


def test_a_folder_with_a_strange_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = a_status()
    run = a_run(tmp_path / "\x1b[31mrun", result=a_result(found), status=found)
    for words in (["top"], ["report"], ["trace"]):
        cli.main([*words, str(run.folder)])
        out, err = capsys.readouterr()
        assert "31mrun" in out + err, words
        check_output(out + err)
