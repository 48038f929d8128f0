"""Ends of a script that Python, or Paceline, is not told of, and what keeps a process alive after the end."""

import re
import signal
import threading
from pathlib import Path

import pytest

from paceline.worker import script_end

from .conftest import Run
from .test_runs import Running, gone, script

SILENT = "ended with exit code 0 before Paceline could tell that it is done"
EXEC = "import os, sys; sys.stdout.flush(); os.execv('/bin/true', ['true'])"
ATEXIT = "import atexit, os; atexit.register(lambda: os._exit(0))"
THREAD = "import threading, time; threading.Thread(target=time.sleep, args=(SECONDS,), name='uploader').start()"
PROCESS = "import multiprocessing, time; multiprocessing.get_context('fork').Process(target=time.sleep, args=(SECONDS,), name='saver').start()"
SOON = "import paceline.worker.script_end as end; end.FIRST_SECONDS = 0.5\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "end", "workers"),
    [
        ("Synchronous", "import os; os._exit(0)", 2),
        ("AllReduce", ATEXIT, 2),
        ("Synchronous", EXEC, 1),
    ],
)
def test_a_script_that_ends_in_silence_is_told_at_once(strategy: str, end: str, workers: int, run: Run) -> None:
    outcome = run(script(5, 0) + "\n" + end + "\n", strategy=strategy, workers=workers)
    assert outcome.code == 1
    assert SILENT in outcome.result["error"]["message"], outcome.output
    assert outcome.result["error"]["replica"].startswith("worker-")
    assert outcome.result["duration_seconds"] < 40


@pytest.mark.slow
def test_what_keeps_a_worker_alive_is_named_and_waited_for(run: Run) -> None:
    after = "\n".join(text.replace("SECONDS", "2") for text in (THREAD, PROCESS))
    outcome = run(SOON + script(3, 0) + "\n" + after + "\n", workers=1)
    assert outcome.code == 0, outcome.output
    said = r"script of worker-0 has come to its end, but Python waits for its thread 'uploader', process 'saver' \(\d+\): let"
    assert re.search(said, outcome.output), outcome.output


@pytest.mark.slow
def test_ctrl_c_ends_a_run_that_waits_for_a_thread(tmp_path: Path) -> None:
    running = Running(tmp_path, SOON + script(3, 0) + "\n" + THREAD.replace("SECONDS", "1000") + "\n")
    running.wait_for("waits for its thread 'uploader'")
    training_id = running.training_id()
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(timeout=30) == 130
    gone(training_id)
    assert running.process.stdout
    running.process.stdout.close()


def test_threads_that_python_waits_for() -> None:
    over = threading.Event()
    threads = [threading.Thread(target=over.wait, name=name, daemon=name == "daemon") for name in ("one", "daemon")]
    for thread in threads:
        thread.start()
    try:
        assert "thread 'one'" in script_end.lasting()
        assert "thread 'daemon'" not in script_end.lasting()
    finally:
        over.set()
        for thread in threads:
            thread.join()
