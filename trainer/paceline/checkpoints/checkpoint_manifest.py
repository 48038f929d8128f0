"""The manifest of a checkpoint: written last, so that a checkpoint without one is none; it names every other file.

    CHECKPOINTS/step-000000120/
        checkpoint.json                     the manifest: files with sizes and SHA-256, versions, data, who saved it
        ps-0.0.parameters.safetensors       shard 0's slices of the first model, `parameter:first element`, and what
        ps-0.0.optimizer.safetensors        is not trained; the state of its optimizer (paceline/optimizer_state.py)
        worker-0.state                      a worker's random generators, place in the data and the script's own states

The manifest holds a checksum of itself, over its one spelling: a byte that is changed anywhere is noticed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from paceline.files import bounded_reading
from paceline_core.errors import CheckpointDamaged, SpecError

FILE = "checkpoint.json"
FORMAT = 1
CHUNK = 1 << 20
MOST_BYTES = bounded_reading.MOST_JSON
MOST_VALUES = 200_000  # in a manifest: some ten for each file


@dataclass(frozen=True)
class StoredFile:
    """One file of a checkpoint, as it was written."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds."""

    step: int  # updates made, of all pairs of a model and an optimizer
    versions: tuple[int, ...]  # of each pair
    training: str
    specification: str  # SHA-256 of the specification that the training had
    saved: float  # when, in Unix time
    shards: int
    workers: int
    store: Mapping[str, str] = field(default_factory=dict)  # what worker 0 said first under each name
    files: tuple[StoredFile, ...] = ()

    @property
    def nbytes(self) -> int:
        """The bytes of all its files."""
        return sum(file.nbytes for file in self.files)

    def to_text(self) -> str:
        """The one spelling of it, with its own checksum."""
        body = {"format": FORMAT, **asdict(self)}
        return _spelled({**body, "checksum": _checksum(body)})


def read(folder: Path) -> Manifest | None:
    """The manifest in a folder; None where there is none. Raises CheckpointDamaged for one that was changed."""
    try:
        data = bounded_reading.whole(folder, FILE, MOST_BYTES)
    except SpecError as error:
        raise CheckpointDamaged(f"{folder / FILE}: {error}") from error
    return None if data is None else parsed(data, str(folder / FILE))


def parsed(data: bytes, where: str) -> Manifest:
    """The manifest that these bytes say. Raises CheckpointDamaged for what was changed."""
    try:
        value = bounded_reading.json_value(data, MOST_VALUES)
        found = _from_value(value)
        if data.decode() != found.to_text():
            raise ValueError("it is not as it was written")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointDamaged(f"{where}: {error}") from error
    return found


def sha256(path: Path) -> str:
    """The SHA-256 of a file. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()


def problems(folder: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files of a checkpoint, each with its name; none when all are as they were written."""
    return [problem for file in manifest.files if (problem := _problem(folder / file.name, file)) is not None]


def another_number(saved: int, workers: int) -> str:
    """Why a checkpoint cannot be taken with another number of workers."""
    return (
        f"was saved with {saved} workers, and this training has {workers}: each worker goes on where it was, so their "
        "number must be the same"
    )


def difference(where: str, file: StoredFile, nbytes: int, checksum: Callable[[], str]) -> str | None:
    """What is wrong with a file of so many bytes; None when it is as it was written."""
    if nbytes != file.nbytes:
        return f"{where}: has {nbytes} bytes and was written with {file.nbytes}"
    return None if checksum() == file.sha256 else f"{where}: is not as it was written (SHA-256)"


def _problem(path: Path, file: StoredFile) -> str | None:
    try:
        if not path.is_file() or path.is_symlink():
            return f"{path}: is missing"
        return difference(str(path), file, path.stat().st_size, lambda: sha256(path))
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"


def _from_value(value: Mapping[str, Any]) -> Manifest:
    if value["format"] != FORMAT:
        raise ValueError(f"its format is {value['format']!r}; this version reads {FORMAT}")
    files = tuple(StoredFile(str(f["name"]), int(f["nbytes"]), str(f["sha256"])) for f in value["files"])
    if any("/" in f.name or f.name in ("", ".", "..", FILE) for f in files):
        raise ValueError("it names a file outside its folder")
    return Manifest(
        int(value["step"]),
        tuple(int(v) for v in value["versions"]),
        str(value["training"]),
        str(value["specification"]),
        float(value["saved"]),
        int(value["shards"]),
        int(value["workers"]),
        {str(k): str(v) for k, v in value["store"].items()},
        files,
    )


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_spelled(body).encode()).hexdigest()


def _spelled(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
