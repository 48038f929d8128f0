"""How a script ends is known at its exit, however it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WATCH = """
import atexit, sys
from paceline.worker.exit_code import Exits
exits = Exits()
def tell():
    error = exits.failed()
    print("well" if error is None else f"failed with {error.code!r}", flush=True)
atexit.register(tell)
"""
MAIN = """
def main(code):
    try:
        sys.exit(code)
    finally:
        print("cleaned up")
"""
FROM_A_THREAD = """
import threading
thread = threading.Thread(target=sys.exit, args=(3,))
thread.start()
thread.join()
"""
IN_A_TASK = """
import asyncio
async def wait():
    await asyncio.sleep(0)
    sys.exit(3)
asyncio.run(wait())
"""
AT_SIGTERM = """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
os.kill(os.getpid(), signal.SIGTERM)
for _ in range(10**9): pass
"""
ARGUMENTS = """
import argparse
argparse.ArgumentParser().parse_args(["--unknown"])
"""


@pytest.mark.parametrize("as_module", [False, True])
@pytest.mark.parametrize(
    ("script", "said", "code"),
    [
        ("pass", "well", 0),
        ("sys.exit()", "well", 0),
        ("sys.exit(0)", "well", 0),
        ("sys.exit(256)", "well", 0),
        ("sys.exit(3)", "failed with 3", 3),
        ("sys.exit('no data')", "failed with 'no data'", 1),
        ("if True:\n    with open('script.py'):\n        main(3)", "failed with 3", 3),
        ("try: main(3)\nfinally: print('done')", "failed with 3", 3),
        ("try: 1 / 0\nexcept ZeroDivisionError: sys.exit(3)", "failed with 3", 3),
        ("try: main(3)\nexcept SystemExit: raise", "failed with 3", 3),
        ("try: main(3)\nexcept SystemExit: print('caught')", "well", 0),
        ("try: main(3)\nexcept SystemExit: pass", "well", 0),
        ("def safe():\n    try: main(3)\n    except SystemExit: pass\nsafe()", "well", 0),
        ("try: main(3)\nexcept SystemExit: sys.exit(0)", "well", 0),
        ("try: main(0)\nexcept SystemExit: sys.exit(3)", "failed with 3", 3),
        ("while True:\n    try: main(3)\n    except SystemExit: break", "well", 0),
        (FROM_A_THREAD, "well", 0),
        (IN_A_TASK, "failed with 3", 3),
        (AT_SIGTERM, "failed with 143", 143),
        (ARGUMENTS, "failed with 2", 2),
    ],
)
def test_the_end_of_the_script_is_known(tmp_path: Path, script: str, said: str, code: int, as_module: bool) -> None:
    (tmp_path / "script.py").write_text(WATCH + MAIN + script)
    command = ["-m", "script"] if as_module else ["script.py"]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.splitlines()[-1], done.returncode) == (said, code), done.stderr
