"""A bucket of an object store: what is asked of it, how long, and what is said when it does not answer.

Credentials come from the environment or the machine's own account, never from a manifest; the library renews them.
"""

import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from paceline.checkpoints import store_errors
from paceline_core.errors import StoreRefused, StoreUnreachable

PATIENCE_SECONDS = 120.0  # for a store that does not answer, or answers that it cannot now
PAUSE_SECONDS = 3.0
REQUEST_SECONDS = 60.0  # for one request, which carries at most a piece
LIBRARY_SECONDS = 10.0  # that the library tries one request again by itself, before that is said
TICK_SECONDS = 0.2
PIECE = 8 << 20  # bytes in a request
PIECES_AT_ONCE = 4  # in memory while a file is sent or read
MOST_PIECES = 9_000  # of one file: S3 takes 10,000
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
ENDPOINT = re.compile(r"https?://[\w.:\[\]-]+(/[^\s?#]*)?")
log = logging.getLogger("paceline")
T = TypeVar("T")


class ObjectStore:
    """One bucket, as `s3://NAME`; keys are paths in it. Safe to call from any thread.

    Every function raises StoreRefused, and StoreUnreachable when there is no answer within `patience`.
    """

    def __init__(self, url: str, patience: float = PATIENCE_SECONDS) -> None:
        self._url, self._patience, self._scheme = url, patience, url.partition(":")[0]
        self._store: Any = _opened(url)

    def send(self, key: str, path: Path) -> None:
        """Store a file; it is there whole, or as before."""
        piece = max(PIECE, -(-path.stat().st_size // MOST_PIECES))
        self._do(
            key,
            lambda: obstore.put(self._store, key, path, chunk_size=piece, max_concurrency=PIECES_AT_ONCE),
        )

    def create(self, key: str, data: bytes) -> bool:
        """Store these bytes if nothing is there; False when something is."""
        try:
            self._do(key, lambda: obstore.put(self._store, key, data, mode="create", use_multipart=False))
        except AlreadyExistsError:
            return False
        return True

    def read(self, key: str, most: int) -> bytes | None:
        """All bytes of an object, of which there are at most so many; None where there is none. Raises ValueError."""
        size = self.size(key)
        if size is not None and size > most:
            raise ValueError(f"has {size} bytes, more than {most}")
        return None if size is None else b"".join(self.pieces(key, size))

    def size(self, key: str) -> int | None:
        """The bytes of an object; None where there is none."""
        try:
            return int(self._do(key, lambda: obstore.head(self._store, key))["size"])
        except FileNotFoundError:
            return None

    def pieces(self, key: str, size: int) -> Iterator[bytes]:
        """The bytes of an object, piece by piece, of which the next ones are on their way.

        Raises FileNotFoundError when it is gone.
        """
        ahead: deque[Future[bytes]] = deque()
        for start in range(0, size, PIECE):
            ahead.append(_begun(partial(self._piece, key, start, min(start + PIECE, size))))
            if len(ahead) == PIECES_AT_ONCE:
                yield _answer(ahead.popleft())
        while ahead:
            yield _answer(ahead.popleft())

    def _piece(self, key: str, start: int, end: int) -> bytes:
        return bytes(self._do(key, lambda: obstore.get_range(self._store, key, start=start, end=end)))

    def sizes(self, prefix: str) -> Mapping[str, int]:
        """The bytes of every object under a prefix, by its key."""
        listed = self._do(prefix, lambda: obstore.list(self._store, prefix=prefix).collect())
        return {str(found["path"]): int(found["size"]) for found in listed}

    def remove(self, keys: list[str]) -> None:
        """Remove objects, of which some may be gone already."""
        if keys:
            self._do(keys[0], lambda: obstore.delete(self._store, keys))

    def _do(self, key: str, ask: Callable[[], T]) -> T:
        """Raises FileNotFoundError for an object that is not there, and AlreadyExistsError."""
        where, until = f"{self._url}/{key}", time.monotonic() + self._patience
        while True:
            try:
                return _interruptible(ask)
            except AlreadyExistsError:
                raise
            except (BaseError, FileNotFoundError) as error:
                if (why := store_errors.refused(error, self._scheme)) is not None:
                    raise StoreRefused(f"{where}: {why}") from error
                if isinstance(error, FileNotFoundError):
                    raise
                left, why = until - time.monotonic(), store_errors.failed(error)
                if left <= 0:
                    raise StoreUnreachable(f"{where}: the store {why}") from error
                log.warning("%s: the store %s; it is tried again for up to %.0f s", where, why, left)
                time.sleep(min(PAUSE_SECONDS, left))


def _interruptible(ask: Callable[[], T]) -> T:
    """The library waits without looking for Ctrl-C, which comes to the main thread: another waits in its place."""
    return _answer(_begun(ask)) if threading.current_thread() is threading.main_thread() else ask()


def _begun(ask: Callable[[], T]) -> "Future[T]":
    """Ask in a thread that does not keep the process from ending."""
    future: Future[T] = Future()

    def answer() -> None:
        try:
            future.set_result(ask())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=answer, name="object-store", daemon=True).start()
    return future


def _answer(future: "Future[T]") -> T:
    while not wait([future], TICK_SECONDS).done:
        pass  # a signal that comes just before a wait does not end it
    return future.result()


@cache
def _opened(url: str) -> Any:
    endpoints = {name: value for name in ENDPOINTS if (value := os.environ.get(name))}
    for name, value in endpoints.items():
        if not ENDPOINT.fullmatch(value):
            raise StoreRefused(f"{url}: {name} is {value!r}: write https://HOST:PORT, or http://HOST:PORT")
    plain = any(value.startswith("http://") for value in endpoints.values())
    try:
        return from_url(
            url,
            client_options={"timeout": timedelta(seconds=REQUEST_SECONDS), "allow_http": plain},
            retry_config={"retry_timeout": timedelta(seconds=LIBRARY_SECONDS)},
        )
    except (BaseError, ValueError) as error:
        scheme, why = url.partition(":")[0], str(error).splitlines()[0]
        raise StoreRefused(f"{url}: {why}: set {store_errors.ENVIRONMENT[scheme]}") from error
