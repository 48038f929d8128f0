"""Progress bars and other lines that do not end: shown and kept while they are drawn."""

import sys
import time
from pathlib import Path

import pytest

from paceline.local.output_lines import LONGEST_BYTES, UNENDED_SECONDS, OutputLines
from paceline.local.replica import Replica, Start

from .conftest import eventually

LATER = UNENDED_SECONDS + 1


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ([b"one\ntw", b"o\n"], [["one"], ["two"]]),
        ([b"windows\r\n", b"\n"], [["windows"], [""]]),
        ([b"\r 1%\r 2%\r 3%", b"\r100%\n"], [[], ["100%"]]),  # as tqdm draws
        ([b" 1%\r 2%\r", b" 3%\r\n"], [[], [" 3%"]]),  # as pip does
        ([b" 1%\r", b"\n"], [[], [" 1%"]]),
        (["\u2192".encode()[:2], "\u2192".encode()[2:] + b"\n"], [[], ["\u2192"]]),
    ],
)
def test_lines_are_what_a_terminal_would_show(pieces: list[bytes], shown: list[list[str]]) -> None:
    lines = OutputLines(0)
    assert [lines.feed(piece, 1) for piece in pieces] == shown
    assert lines.end() == []


def test_a_bar_is_shown_now_and_then_as_it_is_at_that_time() -> None:
    lines, shown = OutputLines(0), []
    for i in range(100):
        shown += [(i, line) for line in lines.feed(b"\r%d%%" % i, i * UNENDED_SECONDS / 10)]
    assert shown == [(i, f"{i}%") for i in range(10, 100, 10)]
    assert lines.feed(b"\r100%\n", 1000) == ["100%"]


def test_what_does_not_change_is_shown_once() -> None:
    lines = OutputLines(0)
    assert lines.feed(b"loading...", 1) == []
    assert lines.feed(b"", LATER) == ["loading..."]
    assert lines.feed(b"", 2 * LATER) == []
    assert lines.feed(b" done\n", 3 * LATER) == ["loading... done"]


def test_what_ends_without_a_line_end_is_shown() -> None:
    lines = OutputLines(0)
    assert lines.feed(b"\r50%\r60%", 1) == []
    assert lines.end() == ["60%"]


@pytest.mark.parametrize("piece", [b"." * 1000, b"\r" + b"." * 1000, b"\r"])
def test_a_line_without_end_does_not_grow_without_bound(piece: bytes) -> None:
    lines = OutputLines(0)
    shown = [line for _ in range(1000) for line in lines.feed(piece, 1)]
    assert len(lines._rest) <= LONGEST_BYTES
    assert len("".join(shown)) + len(lines._rest) >= (1_000_000 if piece[0] == ord(".") else 0)


def test_a_bar_is_in_the_log_and_on_the_display_while_it_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("output_lines", "replica"):
        monkeypatch.setattr(f"paceline.local.{module}.UNENDED_SECONDS", 0.2)
    draws = "import sys, time\nfor i in range(1000): sys.stdout.write(f'\\r{i}%'); sys.stdout.flush(); time.sleep(0.05)"
    shown: list[str] = []
    start = Start("worker-0", [sys.executable, "-c", draws], {}, tmp_path, tmp_path / "log", tmp_path / "failure", ())
    replica = Replica(start, lambda _, line: shown.append(line))
    try:
        eventually(lambda: len(shown) > 2)
        assert replica.code() is None
        numbers = [int(line.removesuffix("%")) for line in shown]
        assert numbers == sorted(set(numbers))
        assert f"\r{numbers[-1]}%".encode() in (tmp_path / "log").read_bytes()
    finally:
        replica.process.kill()
        replica.process.wait()
        replica.drain(10)


def test_reading_much_output_is_quick(tmp_path: Path) -> None:
    began, lines = time.monotonic(), OutputLines(0)
    assert sum(len(lines.feed(b"a line\n" * 9_000, 1)) for _ in range(100)) == 900_000
    assert time.monotonic() - began < 20
