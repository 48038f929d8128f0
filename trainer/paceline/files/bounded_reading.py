"""Reads files that others may have made: never more than a limit, never waiting for ever, never through a link.

A *given* file is one that the user named: it may be a link, a pipe, or what a shell makes of `<(...)`. A file *of a run
folder* is a plain file in it: a link there could show, or change, what its maker may not see.
"""

import json
import os
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from paceline_core.errors import SpecError

MIB = 1 << 20
CHUNK = 64 << 10
FIRST_SECONDS = 1.0  # until somebody opens a pipe to write to it
PIPE_SECONDS = 30.0  # until a pipe that somebody writes to has given everything: `helm template` takes its time
MOST_JSON = 64 * MIB
MOST_VALUES = 600_000  # in a JSON file: what memory follows from, for `[]` is two bytes there and sixty here
MOST_TRACED = 3 * MOST_VALUES  # in what a process tells of its steps
MOST_LINE = CHUNK  # bytes of a line of a CSV file


def given(path: Path, most: int) -> bytes:
    """All bytes of a file or pipe that the user named. Raises SpecError, also when there are more than `most`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise SpecError([f"{path}: there is no such file"]) from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise SpecError([f"{path}: cannot be read: {_reason(error)}"]) from None
    try:
        return _all(descriptor, path, most)
    except OSError as error:
        raise SpecError([f"{path}: cannot be read: {_reason(error)}"]) from None
    finally:
        os.close(descriptor)


def opened(folder: Path, name: str) -> BinaryIO | None:
    """A plain file of a run folder, `name` relative to it; None when there is none. Raises SpecError."""
    path = folder / name
    try:
        descriptor = _descend(folder, Path(name).parts)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        if any(folder.joinpath(*Path(name).parts[: i + 1]).is_symlink() for i in range(len(Path(name).parts))):
            raise SpecError([f"{path}: is a link, and none is followed in a run folder"]) from None
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return None
        raise SpecError([f"{path}: cannot be read: {_reason(error)}"]) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SpecError([f"{path}: is not a plain file"])
    return os.fdopen(descriptor, "rb")


def whole(folder: Path, name: str, most: int) -> bytes | None:
    """All bytes of a file of a run folder; None when there is none. Raises SpecError, also when there are too many."""
    file = opened(folder, name)
    if file is None:
        return None
    with file:
        data = file.read(most + 1)
    if len(data) > most:
        raise SpecError([f"{folder / name}: {_too_large(most)}"])
    return data


def json_object(folder: Path, name: str, most: int = MOST_VALUES) -> dict[str, Any] | None:
    """The JSON object in a file of a run folder; None when there is no file. Raises SpecError."""
    data = whole(folder, name, MOST_JSON)
    if data is None:
        return None
    try:
        found = json_value(data, most)
    except ValueError as error:
        raise SpecError([f"{folder / name}: cannot be read: {error}"]) from None
    if not isinstance(found, dict):
        raise SpecError([f"{folder / name}: should hold a JSON object"])
    return found


def json_value(data: bytes, most: int = MOST_VALUES) -> Any:
    """What JSON says. Raises ValueError when it is none, or one that would fill the memory."""
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > most:
        raise ValueError(f"it holds more than {most:,} values")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def lines(file: BinaryIO) -> Iterator[str | None]:
    """The lines of a text file, without their ends; None for one that is longer than any that Paceline writes."""
    while line := file.readline(MOST_LINE):
        if line.endswith(b"\n") or len(line) < MOST_LINE:
            yield line.decode(errors="replace").rstrip("\r\n")
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MOST_LINE)
        yield None


def _all(descriptor: int, path: Path, most: int) -> bytes:
    data, until = bytearray(), time.monotonic() + PIPE_SECONDS
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while len(data) <= most:
        if time.monotonic() > until:
            raise SpecError([f"{path}: is a pipe that has not ended within {PIPE_SECONDS:g} s"])
        ready = poll.poll(FIRST_SECONDS * 1e3)
        try:
            chunk = os.read(descriptor, CHUNK)
        except BlockingIOError:
            continue  # somebody holds the other end
        if not chunk and not ready:
            raise SpecError([f"{path}: is a pipe that nobody writes to"])
        if not chunk:
            return bytes(data)
        data += chunk
    raise SpecError([f"{path}: {_too_large(most)}"])


def _descend(folder: Path, parts: tuple[str, ...]) -> int:
    """Open a file part by part, so that no part of its name is a link."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
        return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)


def _too_large(most: int) -> str:
    size = f"{most / MIB:g} MiB" if most >= MIB else f"{most >> 10} KiB"
    return f"is larger than {size}, which is more than any file of its kind needs"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
