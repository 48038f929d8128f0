"""What shard 0 and its followers, or a coordinator, begin with: a checkpoint, or nothing."""

import time
from dataclasses import dataclass

from paceline.checkpoints import finding
from paceline.checkpoints.checkpoint_place import CheckpointPlace
from paceline.checkpoints.restoring import Restored
from paceline.server.membership.key_value_store import KeyValueStore
from paceline.server.observability.checkpoint_record import CheckpointRecord
from paceline_core.errors import UsageError
from paceline_core.launch import Launch


@dataclass(frozen=True)
class Beginning:
    """What a shard begins with: a checkpoint, which was read in so many seconds, or nothing."""

    restored: Restored | None
    seconds: float

    @classmethod
    def of(cls, launch: Launch) -> "Beginning":
        """Look before anything else is begun.

        Raises CheckpointDamaged, StoreUnreachable, and UsageError for what does not fit.
        """
        place, began = finding.root(launch), time.monotonic()
        if place is not None and launch.ordinal == 0:
            if launch.resume is None:
                _demand_own(place)
            place.demand_usable()
        return cls(Restored.of(launch), time.monotonic() - began)

    def tell(self, record: CheckpointRecord, store: KeyValueStore) -> None:
        """Tell of the checkpoint, and what worker 0 had said first in the run that saved it."""
        if self.restored is not None:
            record.resumed(self.restored.manifest, self.seconds, len(self.restored.passed_over))
            store.set_firsts(self.restored.manifest.store)


def _demand_own(place: CheckpointPlace) -> None:
    """A training that begins at its beginning neither mixes its checkpoints with those of another, nor removes them."""
    try:
        found = place.complete()
    except OSError:
        return  # nor can it be written to, and saving says why
    if found:
        raise UsageError(
            f"spec.checkpoint: {place} has checkpoints of another run: set spec.checkpoint.resume to Auto to go on "
            "from them, or choose another folder or another name for the training"
        )
