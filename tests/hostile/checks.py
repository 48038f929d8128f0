"""What holds whatever is handed in: little time and memory, one clear line, nothing that a terminal obeys."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

MOST_SECONDS = 10.0  # the promise is 2; a machine that tests is busy
MOST_MIB = 256
OBEYED = re.compile(r"[^\n\x20-\x7e\xa1-\u200a\u2010-\u2027\u2030-\u205f\u2070-\ufefe\U00010000-\U0010ffff]")


def check_output(text: str) -> None:
    """No traceback, and no character that a terminal obeys."""
    assert "Traceback" not in text
    found = OBEYED.search(text)
    assert not found, ascii(text[max(0, found.start() - 50) : found.end() + 50])


COMMAND = """
import re, sys
from pathlib import Path
from paceline.cli import main
code = main()
told = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]  # of this program, not of what began it
Path("used").write_text(f"{told} {int('torch' in sys.modules)}")
sys.exit(code)
"""


def limited(*arguments: str, cwd: Path, codes: tuple[int, ...] = (2,)) -> str:
    """Run the command as a user does; gives its output."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], cwd=cwd, text=True, timeout=6 * MOST_SECONDS,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    seconds = time.monotonic() - began
    assert done.returncode in codes, done.stdout
    kib, torch = map(int, (cwd / "used").read_text().split())
    print(f"MEASURED {seconds:.2f} s {kib / 1024:.0f} MiB {arguments}")  # pytest -s shows it
    assert seconds < MOST_SECONDS
    assert kib / 1024 < MOST_MIB
    assert not torch
    check_output(done.stdout)
    return done.stdout
