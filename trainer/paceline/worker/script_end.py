"""Says what keeps a worker alive after its script has ended: Python waits for threads and processes of the script.

Paceline waits with it, because they may still train, or save what was trained.
"""

import logging
import multiprocessing
import threading
import time

FIRST_SECONDS, NEXT_SECONDS = 5.0, 60.0  # after the end of the script, and after what was said last
log = logging.getLogger("paceline")


def watch(name: str) -> None:
    """Wait for the end of the script of this worker, in a thread of its own."""
    threading.Thread(target=_watch, args=(name,), name="script-end", daemon=True).start()


def _watch(name: str) -> None:
    threading.main_thread().join()
    pause = FIRST_SECONDS
    while True:
        time.sleep(pause)
        waited_for = lasting()
        if not waited_for:
            return
        pause = NEXT_SECONDS
        log.warning(
            "the script of %s has come to its end, but Python waits for its %s: let it end, or make it a daemon; "
            "Ctrl-C or spec.runPolicy.activeDeadlineSeconds ends the run",
            name,
            ", ".join(waited_for),
        )


def lasting() -> list[str]:
    """The threads and processes that Python waits for when the main thread has ended."""
    own = (threading.main_thread(), threading.current_thread())
    threads = [f"thread {t.name!r}" for t in threading.enumerate() if t not in own and not t.daemon]
    return threads + [f"process {p.name!r} ({p.pid})" for p in multiprocessing.active_children() if not p.daemon]
