"""SIGTERM in a worker of a training that saves: it ends once a checkpoint is whole, and loses no step.

A thread sees the signal, through signal.set_wakeup_fd: Python calls a handler in the main thread alone, and that may
wait in torch's C++ for others' gradients. When the state for a checkpoint is sent, the script is held between two
steps, so that no step is made which the checkpoint does not have. A second thread asks server 0 or the coordinator
whether it is whole.
"""

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from paceline.worker.collectives.store_client import StoreClient
from paceline_core.errors import PacelineError, PeerLost
from paceline_core.launch import Launch

ASK_SECONDS = 0.1  # between two questions
CONNECT_SECONDS = 1.0  # for who answers them: a server that has gone is not waited for
EXIT = 128 + signal.SIGTERM  # as a shell says it of a process that the signal ended
# what the pipe tells: the system saw the signal, Python did, the script is held
SIGNAL, HANDLED, HELD = bytes([signal.SIGTERM]), b"h", b"s"
log = logging.getLogger("paceline")


class Preemption:
    """One worker's. It does nothing where SIGTERM has a handler of the script's, before or from later on."""

    def __init__(self, launch: Launch, tell_rest: Callable[[], None]) -> None:
        self._tell_rest = tell_rest  # of this worker's steps
        self._launch, self._client = launch, StoreClient(launch, CONNECT_SECONDS)
        self._told = False
        self._held = 0  # the checkpoint for which the state is sent
        self._leaving = False
        self._failure: Exception | None = None
        self._released = threading.Event()
        self._lock = threading.Lock()  # of leaving in order, or ending by the signal
        self._asks: threading.Thread | None = None
        self._forking = threading.local()
        self._watches = self._is_free() and self._watch()

    def hold(self, checkpoint: int, last: bool) -> None:
        """The state for a checkpoint is sent, and nothing has begun since: stay here if the training ends with it.

        Raises PeerLost when server 0 has ended.
        """
        if not (last or self._told) or not self._is_ours():
            return
        self._held = checkpoint
        os.write(self._write, HELD)
        self._released.wait(self._launch.grace)
        self._held = 0  # whoever was to end has not: on with the training
        if self._failure is not None:
            raise self._failure

    def leave(self) -> None:
        """The script has come to its end: it is let end in order."""
        with self._lock:
            self._leaving = True

    @staticmethod
    def _is_free() -> bool:
        main = threading.current_thread() is threading.main_thread()
        return main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def _is_ours(self) -> bool:
        """Whether SIGTERM is not for the script itself."""
        return self._watches and signal.getsignal(signal.SIGTERM) == self._handle

    def _watch(self) -> bool:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        signal.signal(signal.SIGTERM, self._handle)
        signal.siginterrupt(signal.SIGTERM, False)  # else a call of a library may fail with EINTR
        before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        if before != -1:  # the script's: then `_handle` has to do
            signal.set_wakeup_fd(before)
        os.register_at_fork(before=self._forks, after_in_parent=self._has_forked, after_in_child=self._forked)
        self._thread = threading.Thread(target=self._run, name="preemption", daemon=True)
        self._thread.start()
        return True

    def _handle(self, *_: int | FrameType | None) -> None:
        if not self._thread.is_alive():
            self._exit()
        with suppress(BlockingIOError):
            os.write(self._write, HANDLED)

    def _forks(self) -> None:
        """Let no SIGTERM come to the new process before it is its own: it would be told here, and not there."""
        self._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def _has_forked(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._forking.mask)

    def _forked(self) -> None:
        """In a process that the script's has forked, SIGTERM is what it was: nobody else's end."""
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if (found := signal.set_wakeup_fd(-1)) != self._write:
            signal.set_wakeup_fd(found)
        self._has_forked()

    def _run(self) -> None:
        try:
            self._wait_for_signals()
        except Exception:  # the training goes on, and SIGTERM ends this process at once
            log.exception("no checkpoint can be saved any more because of SIGTERM")

    def _wait_for_signals(self) -> None:
        """Of each signal the pipe tells twice, or once where another has taken the wakeup descriptor."""
        seen, until = {SIGNAL: 0, HANDLED: 0}, None
        while until is None or time.monotonic() < until:
            left = None if until is None else max(0.0, until - time.monotonic())
            told = os.read(self._read, 1) if select.select([self._read], [], [], left)[0] else b""
            if told == HELD:
                self._ask()
            elif told in seen and self._is_ours():
                seen[told] += 1
                if max(seen.values()) > 1:
                    self._end("ends at once: it was told again")
                until = until or self._begin()
        self._end(f"ends without a checkpoint: none was whole within {self._launch.end_limit:.3g} s")

    def _begin(self) -> float:
        """Told to end; gives the time until which that may take."""
        log.warning(
            "%s was told to end (SIGTERM): it does when a checkpoint is saved, after the next update, and in %.3g s at "
            "the latest; another SIGTERM ends it at once",
            self._launch.name,
            self._launch.end_limit,
        )
        self._told = True
        self._ask()
        return time.monotonic() + self._launch.end_limit

    def _ask(self) -> None:
        if self._asks is None:
            self._asks = threading.Thread(target=self._ask_until_over, name="preemption-questions", daemon=True)
            self._asks.start()

    def _ask_until_over(self) -> None:
        while not self._leaving:
            try:
                if self._told or self._held:
                    self._ask_once()
            except Exception as error:  # whoever waits for this thread must go on
                self._nobody_answers(error)
                return
            time.sleep(ASK_SECONDS)

    def _ask_once(self) -> None:
        over, saved = self._client.ending(self._held, self._told)
        if over and self._told:
            self._tell_rest()
            self._end(f"ends; the newest checkpoint is that of step {saved}" if saved else "ends: nothing to save")

    def _nobody_answers(self, error: Exception) -> None:
        if self._told:
            self._end(f"ends: {error}")
        gone = f"{self._launch.first_server} has ended after the checkpoint of step {self._held}"
        named = isinstance(error, PacelineError) and error.from_peer
        self._failure = error.with_traceback(None) if named else PeerLost(f"{gone}: {error}")
        self._released.set()

    def _end(self, why: str) -> None:
        with self._lock:
            if not self._leaving:
                log.warning("%s %s", self._launch.name, why)
                self._exit()

    @staticmethod
    def _exit() -> NoReturn:
        os._exit(EXIT)
