"""A text stream for what is shown of a run: writing to it neither waits nor fails, whatever becomes of the output."""

import io
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

MOST_BYTES = 1 << 20  # that wait for a slow reader; what comes then is left out
ENDED = "the output cannot be written"
SLOW = "the output is read too slowly, and parts of it are left out"


class BackgroundOutput(io.TextIOBase):
    """Passes on what it is given in a thread of its own. The first trouble is told to `say`, in words."""

    def __init__(self, descriptor: int, encoding: str, say: Callable[[str], None]) -> None:
        self._descriptor, self._encoding, self._say = descriptor, encoding, say
        self._news = threading.Condition()
        self._waiting = bytearray()
        self._over = self._slow = self._broken = False
        self._thread = threading.Thread(target=self._pass_on, name="output", daemon=True)
        self._thread.start()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # typeshed has a plain attribute
        """How the characters are written."""
        return self._encoding

    def fileno(self) -> int:
        """Where it goes."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it goes to a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, text: str) -> int:
        """Leave a text to be written, whole or, when too much waits already, not at all."""
        data = text.encode(self._encoding, "backslashreplace")
        with self._news:
            fits = len(self._waiting) + len(data) <= MOST_BYTES
            if fits and not self._broken:
                self._waiting += data
            tell, self._slow = not (fits or self._slow or self._broken), self._slow or not fits
            self._news.notify_all()
        if tell:
            self._say(SLOW)
        return len(text)

    def finish(self) -> None:
        """Wait until everything is written. KeyboardInterrupt ends the wait."""
        with self._news:
            self._over = True
            self._news.notify_all()
        self._thread.join()

    def _pass_on(self) -> None:
        try:
            while data := self._next():
                self._write(data)
        except OSError as error:
            with self._news:
                self._broken = True
                self._waiting.clear()
            self._say(f"{ENDED}: {error.strerror}")

    def _next(self) -> bytes:
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._over)
            data = bytes(self._waiting)
            self._waiting.clear()
        return data

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # somebody who shares it has set O_NONBLOCK
                select.select([], [self._descriptor], [])


@contextmanager
def in_background(say: Callable[[str], None]) -> Iterator[None]:
    """While this lasts, standard output is one that never keeps a run from going on.

    At the end what is left is written, however long that takes; Ctrl-C ends it.
    """
    usual = sys.stdout
    usual.flush()
    try:
        descriptor = usual.fileno()
    except io.UnsupportedOperation:  # a notebook's, which is memory
        yield
        return
    output = BackgroundOutput(descriptor, usual.encoding, say)
    sys.stdout = output
    try:
        yield
    finally:
        with suppress(KeyboardInterrupt):
            output.finish()
        sys.stdout = usual
