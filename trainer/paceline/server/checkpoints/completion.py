"""Completes checkpoints: shard 0 or the coordinator hears what has been written, and writes the manifest last.

A checkpoint that is due while one is being written is left out, and said so; one of which a part cannot be written is
given up. This file needs no torch.
"""

import hashlib
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline.checkpoints import finding
from paceline.checkpoints.checkpoint_folder import reason
from paceline.checkpoints.checkpoint_manifest import Manifest, StoredFile
from paceline.checkpoints.checkpoint_place import CheckpointPlace
from paceline.server.observability.checkpoint_record import CheckpointRecord
from paceline.terminal import printable
from paceline_core.errors import PacelineError, ProtocolError
from paceline_core.launch import Launch

LAST = 0  # in place of a step: the state that a worker ended with
REASON_LENGTH = 1000  # characters of why a part could not be written
SHA256 = re.compile(r"[0-9a-f]{64}")
log = logging.getLogger("paceline")


@dataclass
class Unfinished:
    """A checkpoint on its way."""

    step: int
    began: float
    versions: tuple[int, ...] | None = None  # of each pair, as all parts tell them
    parts: dict[int, list[StoredFile]] = field(default_factory=dict)  # files of each process that has written its part
    workers: dict[int, StoredFile] = field(default_factory=dict)  # each one's state

    def takes(self, step: int) -> bool:
        """Whether something of this step belongs to it.

        A ring saves when the step after which it was asked is complete: the first that comes tells after which.
        """
        if not (self.parts or self.workers):
            self.step = max(self.step, step)
        return self.step == step


class Completion:
    """Of checkpoints of so many parts, in `root`; `away` gives the workers that have gone, `store` what they share."""

    def __init__(
        self,
        launch: Launch,
        root: CheckpointPlace,
        keep: int,
        parts: int,
        away: Callable[[], set[int]],
        store: Callable[[], dict[str, str]],
        record: CheckpointRecord,
    ) -> None:
        self._record = record
        self._launch, self._root, self._keep, self._count = launch, root, keep, parts
        self._away, self._store = away, store
        self._unfinished: Unfinished | None = None
        self._gone = set[int]()  # workers
        self._last_states: dict[int, bytes] = {}  # of workers that have left
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is on its way."""
        return self._unfinished is not None

    def makes(self, step: int) -> bool:
        """Whether the checkpoint of this step is on its way."""
        it = self._unfinished
        return it is not None and it.step <= step

    def begin(self, step: int) -> bool:
        """Begin to save after this step; False when another is on its way."""
        self._record.due()
        with self._lock:
            if self._unfinished is not None:
                log.warning("step %d is not saved: the checkpoint of step %d is still being written", step,
                            self._unfinished.step)  # fmt: skip
                return False
            self._unfinished = Unfinished(step, time.monotonic())
        self._jobs.put(lambda: finding.of_step(self._root, step).begin())
        return True

    def hear_part(self, ordinal: int, value: Mapping[str, Any]) -> None:
        """A process has written its part, or could not. Raises ProtocolError."""
        try:
            step, error = int(value["step"]), value.get("error")
            if error is None:
                files = [_stored(file, ordinal) for file in value["files"]]
                versions = tuple(int(version) for version in value["versions"])
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise ProtocolError("bad_payload", f"not the files of a part: {problem}") from problem
        if error is not None:
            why = printable(str(error), REASON_LENGTH)
            self._jobs.put(lambda: self._give_up(step, f"{self._writer(ordinal)}: {why}"))
        else:
            self._jobs.put(lambda: self._part_written(step, ordinal, files, versions))

    def hear_worker(self, worker: int, step: int, data: bytes) -> None:
        """A worker's state for the checkpoint of `step`, or with LAST the one that it ended with."""
        self._jobs.put(lambda: self._worker_told(worker, step, data))

    def replaced(self, worker: int, place: Callable[[int], bytes | None]) -> None:
        """Another goes on where a worker was: what that has not sent comes from its place, or not any more."""
        self._jobs.put(lambda: self._worker_replaced(worker, place))

    def look(self) -> None:
        """Now and then: workers that were waited for may have gone."""
        away = self._away()  # what they sent before is in the queue
        self._jobs.put(lambda: self._not_waiting_for(away))

    def close(self) -> None:
        """Write what is on its way, and end."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # saving is not on the path of training: it goes on, and says so
                self._give_up(None, reason(error))

    def _writer(self, ordinal: int) -> str:
        return f"worker-{ordinal}" if self._launch.spec.ring else f"ps-{ordinal}"

    def _part_written(self, step: int, ordinal: int, files: list[StoredFile], versions: tuple[int, ...]) -> None:
        it = self._unfinished
        if it is None or not it.takes(step):
            return
        if it.versions not in (None, versions):
            self._give_up(
                step, f"{self._writer(ordinal)} is at updates {list(versions)}, others at {list(it.versions or ())}"
            )
            return
        it.versions, it.parts[ordinal] = versions, files
        self._finish_if_whole()

    def _worker_told(self, worker: int, step: int, data: bytes) -> None:
        it = self._unfinished
        if step == LAST:
            self._last_states[worker] = data
        elif it is not None and it.takes(step):
            self._write_state(it, worker, data)
            self._finish_if_whole()

    def _worker_replaced(self, worker: int, place: Callable[[int], bytes | None]) -> None:
        it = self._unfinished
        if it is None or worker in it.workers:
            return
        data = place(it.step)
        if data is None or (self._launch.spec.ring and worker not in it.parts):
            self._give_up(it.step, f"worker-{worker} was lost before it had sent all of it")
        else:
            self._worker_told(worker, it.step, data)

    def _write_state(self, it: Unfinished, worker: int, data: bytes) -> None:
        where = finding.of_step(self._root, it.step)
        it.workers[worker] = where.write(f"worker-{worker}.state", lambda path: path.write_bytes(data))

    def _not_waiting_for(self, away: set[int]) -> None:
        self._gone = away
        it = self._unfinished
        if it is not None and self._launch.spec.ring and (without := away - it.parts.keys()):
            self._give_up(it.step, f"worker-{min(without)} has gone without writing its part")
        self._finish_if_whole()

    def _finish_if_whole(self) -> None:
        it = self._unfinished
        if it is None or len(it.parts) < self._count:
            return
        missing = set(range(self._launch.world_size)) - it.workers.keys()
        if missing - self._gone:
            return
        for worker in sorted(missing & self._last_states.keys()):
            self._write_state(it, worker, self._last_states[worker])
        made = self._manifest(it)
        finding.of_step(self._root, it.step).commit(made)
        with self._lock:
            self._unfinished = None
        seconds = time.monotonic() - it.began
        self._record.saved(made, seconds)
        log.info("step %d is saved (%.1f s)", it.step, seconds)
        try:
            self._root.prune(self._keep)
        except (OSError, PacelineError) as error:
            log.warning("older checkpoints cannot be removed: %s", reason(error))

    def _manifest(self, it: Unfinished) -> Manifest:
        files: Sequence[StoredFile] = [f for _, files in sorted(it.parts.items()) for f in files]
        return Manifest(
            it.step,
            it.versions or (),
            self._launch.training,
            specification(self._launch),
            time.time(),
            self._count,
            self._launch.world_size,
            self._store(),
            (*files, *it.workers.values()),
        )

    def _give_up(self, step: int | None, why: str) -> None:
        with self._lock:
            it = self._unfinished
            ended = it is not None and (step is None or it.takes(step))
            self._unfinished = None if ended else it
        if it is not None and ended:
            finding.of_step(self._root, it.step).discard()
        if ended or step is None:  # and not for each process that could not write its part
            self._record.failed(why)
            log.warning("a checkpoint could not be saved, and the training goes on: %s", why)


def specification(launch: Launch) -> str:
    """The SHA-256 of the specification."""
    text = launch.spec.model_dump_json(by_alias=True, exclude_defaults=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _stored(file: Mapping[str, Any], ordinal: int) -> StoredFile:
    """A file of this process's part. Raises ValueError for one that it has no business to name."""
    name, nbytes, sha256 = str(file["name"]), int(file["nbytes"]), str(file["sha256"])
    known = rf"ps-{ordinal}\.\d+\.(parameters|optimizer)\.safetensors" + (r"|pair-\d+\.json" if ordinal == 0 else "")
    if not re.fullmatch(known, name) or nbytes < 0 or not SHA256.fullmatch(sha256):
        raise ValueError(f"{name[:100]!r} is no file of part {ordinal}")
    return StoredFile(name, nbytes, sha256)
