"""What the coordinator of an all-reduce does about checkpoints: workers ask it when to save, and it completes them.

Every worker has the same model, so that each could save alone; what they need is one answer. Each asks after the same
steps, since the answer names the next one, and all are told what the first was told. No step but these waits for it.
"""

import threading
import time
from typing import Any

from paceline.checkpoints import finding
from paceline.server.checkpoints.beginning import Beginning
from paceline.server.checkpoints.completing import Completing
from paceline.server.checkpoints.completion import Completion
from paceline.server.checkpoints.last_save import LastSave
from paceline.server.checkpoints.save_schedule import SaveSchedule
from paceline.server.membership.key_value_store import Asker, KeyValueStore
from paceline.server.membership.membership import Membership
from paceline.server.observability.checkpoint_record import CheckpointRecord
from paceline_core.launch import Launch


class RingCheckpoints(Completing):
    """The coordinator's part. Raises CheckpointDamaged, UsageError for what the training cannot go on from."""

    def __init__(self, launch: Launch, membership: Membership, store: KeyValueStore, record: CheckpointRecord) -> None:
        beginning = Beginning.of(launch)
        self._restored = beginning.restored
        self._lock = threading.Lock()
        step = self._restored.manifest.step if self._restored else 0
        self._begins_at = step
        self._answered, self._answer = step, {"save": False, "ask_after": step + 1, "last": False}
        asked, root = launch.spec.checkpoint, finding.root(launch)
        if asked is not None and root is not None:
            self._schedule = SaveSchedule(asked, step, time.monotonic())
            self._completion = Completion(
                launch, root, asked.keep, launch.world_size, membership.absent, store.firsts, record
            )
            self._last_save = it = LastSave(
                self._completion, membership, launch.spec.knobs, record, lambda: self._answered > self._begins_at
            )
            store.offer({"ending": it.answer})
        beginning.tell(record, store)
        store.offer({"save": self._save, "saved": self._saved, "resume": self._resume})

    def _save(self, _: Asker, ask: dict[str, Any]) -> dict[str, Any]:
        """Whether to save after a step, and after which to ask again."""
        step = int(ask["step"])
        with self._lock:
            if step > self._answered and self._completion is not None and self._last_save is not None:
                now = time.monotonic()
                saves = self._schedule.due(step, now, self._last_save.due()) and self._completion.begin(step)
                last = saves and self._last_save.begun(step)
                self._answer = {"save": saves, "ask_after": self._schedule.next_question(step, now), "last": last}
                self._answered = step
            elif step != self._answered:
                raise ValueError(f"a question about step {step} after one about {self._answered}")
            return self._answer

    def _saved(self, asker: Asker, ask: dict[str, Any]) -> None:
        """A worker has written its part, or could not."""
        if self._completion is not None:
            self._completion.hear_part(asker.worker, ask["part"])

    def _resume(self, *_: object) -> str | None:
        """The checkpoint that the training goes on from."""
        return self._restored.place.absolute if self._restored else None
