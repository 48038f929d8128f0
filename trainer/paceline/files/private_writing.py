"""Writes files of a run for its owner alone, and never through a link that somebody left in its place."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER, FILE, USUAL = 0o700, 0o600, 0o666  # modes; the last one less the user's umask


@contextmanager
def owner_only() -> Iterator[int]:
    """While this lasts, what this process and its children make is for its user alone; gives the umask before."""
    before = os.umask(0o077)
    try:
        yield before
    finally:
        os.umask(before)


def replace(path: Path, data: bytes, mode: int = FILE) -> None:
    """Write a file whole: beside it first, so that a link of its name is replaced and not followed. Raises OSError."""
    beside = path.with_name(f".paceline-{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_asked(path: Path, data: bytes) -> None:
    """Write where the user asked for it: also into a device or a pipe, such as /dev/stdout. Raises OSError."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
    else:
        replace(path, data, USUAL)
