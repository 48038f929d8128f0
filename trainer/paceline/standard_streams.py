"""Standard input, output and error of a command: all there, able to write every character, and dropped when broken."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

NAMES = ("stdin", "stdout", "stderr")  # by their numbers


class OutputLost(Exception):
    """Standard output could not be written; `closed` when its reader, for example `head`, has seen enough."""

    def __init__(self, problem: OSError) -> None:
        super().__init__(f"standard output cannot be written: {problem.strerror}")
        self.closed = isinstance(problem, BrokenPipeError)


@contextmanager
def ready() -> Iterator[None]:
    """Make the streams ready for a command, and at its end write what is left. Raises OutputLost."""
    for name in NAMES:
        setattr(sys, name, _ready(name, getattr(sys, name)))
    try:
        yield
    finally:
        _end(sys.stderr)
        if problem := _end(sys.stdout):
            raise OutputLost(problem)


def say(text: str) -> None:
    """A line on standard error, if that can be written."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _end(sys.stderr)


def _ready(name: str, stream: TextIO | None) -> TextIO:
    if stream is None:  # it was closed: nobody else, for example a socket, shall get its number
        return os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w", closefd=False)
    if not isinstance(stream, io.TextIOWrapper) or name == "stdin":
        return stream
    if name == "stdout" and isinstance(
        stream.buffer, io.RawIOBase
    ):  # PYTHONUNBUFFERED: it forgets what it could not write
        stream = open(stream.fileno(), "w", encoding=stream.encoding, closefd=False)
    stream.reconfigure(errors="backslashreplace")  # what the encoding lacks is written as \\u2192
    return stream


def _end(stream: TextIO) -> OSError | None:
    """Write what is left. What cannot be written is dropped: Python would change the exit code because of it."""
    try:
        stream.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        return error
    return None
