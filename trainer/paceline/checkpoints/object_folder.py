"""A place of checkpoints in an object store: files are made in a temporary folder and sent; the manifest comes last.

A manifest is put on the condition that there is none, which is the commit: a crash before it leaves objects that are no
checkpoint, and that a later save removes. Objects are read into a temporary folder, and compared with the manifest on
the way.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paceline.checkpoints import checkpoint_manifest
from paceline.checkpoints.checkpoint_folder import NAME
from paceline.checkpoints.checkpoint_manifest import FILE, Manifest, StoredFile
from paceline.checkpoints.object_store import PATIENCE_SECONDS, ObjectStore
from paceline_core.errors import CheckpointDamaged, StoreRefused, StoreUnreachable

URL = re.compile(r"((?:s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*)(?:/([^?#@]*))?")


@dataclass(frozen=True)
class ObjectFolder:
    """Objects whose keys begin alike, as a place of checkpoints (paceline/checkpoints/checkpoint_place.py).

    What fails raises StoreRefused, or StoreUnreachable after `patience` seconds.
    """

    url: str  # without a slash at its end
    patience: float = PATIENCE_SECONDS

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def absolute(self) -> str:
        """The URL."""
        return self.url

    def inside(self, name: str) -> "ObjectFolder":
        """A place in this one."""
        return ObjectFolder(f"{self.url}/{name}", self.patience)

    def demand_usable(self) -> None:
        """Read and write there: rights are known only by trying."""
        bucket, key = self._bucket(), self._key(f".paceline-{os.getpid()}-{os.urandom(4).hex()}")
        bucket.sizes(self._key())
        bucket.create(key, b"Paceline tries whether it may write here.\n")
        bucket.remove([key])

    def complete(self) -> Sequence["ObjectFolder"]:
        """The checkpoints in it, the newest first; not verified."""
        return [self.inside(name) for name, keys in self._steps() if self._key(name, FILE) in keys]

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep`, and what older attempts left unfinished."""
        steps, bucket = self._steps(), self._bucket()
        whole = [name for name, keys in steps if self._key(name, FILE) in keys]
        for name, keys in steps:
            if whole and name not in whole[:keep] and _step(name) < _step(whole[0]):
                manifest = self._key(name, FILE)
                bucket.remove([key for key in keys if key == manifest])  # first: what is half removed is no checkpoint
                bucket.remove([key for key in keys if key != manifest])

    def begin(self) -> None:
        """What was there, of an earlier attempt, is no checkpoint any more."""
        self._bucket().remove([self._key(FILE)])

    def write(self, name: str, fill: Callable[[Path], object]) -> StoredFile:
        """Write one file, which `fill` makes at the path that it is given. Raises OSError for the temporary folder."""
        with _temporary(name) as path:
            fill(path)
            stored = StoredFile(name, path.stat().st_size, checkpoint_manifest.sha256(path))
            self._bucket().send(self._key(name), path)
        return stored

    def commit(self, made: Manifest) -> None:
        """Complete a checkpoint whose other files are there, which is looked at."""
        bucket, key, data = self._bucket(), self._key(FILE), made.to_text().encode()
        there = bucket.sizes(self._key())
        for file in made.files:
            if there.get(self._key(file.name)) != file.nbytes:
                raise StoreRefused(f"{self}/{file.name}: is not there any more as it was written: {ALONE}")
        if not bucket.create(key, data) and bucket.read(key, len(data)) != data:  # equal: an answer of ours was lost
            raise StoreRefused(f"{self}: another process has completed this checkpoint: {ALONE}")

    def discard(self) -> None:
        """Remove what is unfinished, as far as it can be: it is no checkpoint, and a later save removes it."""
        try:
            keys = list(self._bucket(patience=0).sizes(self._key()))
            if self._key(FILE) not in keys:
                self._bucket(patience=0).remove(keys)
        except (StoreRefused, StoreUnreachable):
            pass

    def manifest(self) -> Manifest | None:
        """The manifest; None where there is none. Raises CheckpointDamaged for one that was changed."""
        where = f"{self}/{FILE}"
        try:
            data = self._bucket().read(self._key(FILE), checkpoint_manifest.MOST_BYTES)
        except ValueError as error:
            raise CheckpointDamaged(f"{where}: {error}") from error
        except FileNotFoundError:
            return None
        return None if data is None else checkpoint_manifest.parsed(data, where)

    def problems(self, made: Manifest) -> list[str]:
        """What is wrong with the files, each with its name; none when all are as they were written."""
        return [wrong for file in made.files if (wrong := self._difference(file, len)) is not None]

    @contextmanager
    def local(self, file: StoredFile) -> Iterator[Path]:
        """A file to read from, which is removed afterwards. Raises CheckpointDamaged, OSError."""
        with _temporary(file.name) as path:
            with path.open("wb") as target:
                wrong = self._difference(file, target.write)
            if wrong is not None:
                raise CheckpointDamaged(wrong)
            yield path

    def _difference(self, file: StoredFile, take: Callable[[bytes], object]) -> str | None:
        """What is wrong with a file, whose bytes are given to `take`."""
        bucket, key, where, digest = self._bucket(), self._key(file.name), f"{self}/{file.name}", hashlib.sha256()
        size = bucket.size(key)
        try:
            if size == file.nbytes:
                for piece in bucket.pieces(key, size):
                    digest.update(piece)
                    take(piece)
        except FileNotFoundError:  # it was removed meanwhile
            size = None
        return (
            f"{where}: is missing"
            if size is None
            else checkpoint_manifest.difference(where, file, size, digest.hexdigest)
        )

    def _steps(self) -> list[tuple[str, list[str]]]:
        """The names of all folders of steps with their objects' keys, the newest first."""
        found: dict[str, list[str]] = {}
        for key in self._bucket().sizes(self._key()):
            name = key.removeprefix(self._key()).lstrip("/").partition("/")[0]
            if NAME.fullmatch(name):
                found.setdefault(name, []).append(key)
        return sorted(found.items(), key=lambda item: _step(item[0]), reverse=True)

    def _bucket(self, patience: float | None = None) -> ObjectStore:
        return ObjectStore(_parts(self.url)[0], self.patience if patience is None else patience)

    def _key(self, *names: str) -> str:
        return "/".join((*filter(None, [_parts(self.url)[1]]), *names))


ALONE = "let only one training of a name save to one place"


def _parts(url: str) -> tuple[str, str]:
    """The bucket and the prefix."""
    found = URL.fullmatch(url)
    if found is None:
        raise StoreRefused(
            f"{url}: is no place of checkpoints: write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
        )
    return found[1], found[2] or ""


def _step(name: str) -> int:
    return int(name.partition("-")[2])


@contextmanager
def _temporary(name: str) -> Iterator[Path]:
    """A path for a file that is removed afterwards; TMPDIR says where."""
    with tempfile.TemporaryDirectory(prefix="paceline-checkpoint-") as folder:
        yield Path(folder, name)
