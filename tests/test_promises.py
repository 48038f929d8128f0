"""docs/promises.md names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/promises.md").read_text()


def test_every_promise_names_tests_that_exist() -> None:
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for _, promise, shown_by, *_ in rows:
        named = re.findall(r"`(tests/\S+\.py)`", shown_by)
        assert named, promise
        assert [name for name in named if not (ROOT / name).is_file()] == []
