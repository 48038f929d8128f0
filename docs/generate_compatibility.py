"""Writes docs/compatibility.md from the rows of tests/compatibility. With --check, only says whether it is current."""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.compatibility.rows import SUBJECTS
from tests.compatibility.table import MODES, Row

TARGET = Path(__file__).with_name("compatibility.md")
HEAD = """# What ordinary scripts may do

Each line is a script that the tests run alone and on two workers in every mode (`pytest tests/compatibility`).
Written by `make docs` from those scripts; do not edit.

**same**: the workers end with the weights of one process that sees the whole batch, within 1e-6 of the largest weight
(a sum of halves is not the sum of the whole, in the last bits; the models are in float64 for that, where the line is
not about precision), all workers with the same weights bit for bit, and the saved file holds them. In Asynchronous the
comparison is of one worker's steps, while another has joined and left: with two at work the weights depend on the order
of arrival (and can be replayed, bit for bit). **own**: it works, with other mathematics, which the note tells.
**refused**: an error that says what to do, in most cases before the first step.
"""


def page() -> Iterator[str]:
    """The page, piece by piece."""
    yield HEAD
    for subject, rows in SUBJECTS.items():
        yield f"\n## {subject}\n\n| a script | {' | '.join(MODES)} | |\n|---|---|---|---|---|\n"
        for row in rows:
            name = row.name.replace("|", "\\|")
            yield f"| {name} | {' | '.join(_said(row, mode) for mode in MODES)} | {row.note} |\n"


def _said(row: Row, mode: str) -> str:
    if mode in row.refused:
        return "refused"
    return "same" if row.same(mode) else "own"


def main() -> int:
    """Write or check."""
    text = "".join(page())
    if "--check" not in sys.argv:
        TARGET.write_text(text)
        return 0
    if not TARGET.exists() or TARGET.read_text() != text:
        print("docs/compatibility.md is not what the tests say: run `make docs`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
