"""The checkpoint that is made before processes end that were told to, by SIGTERM: asked for, and waited for.

Shard 0 or the coordinator has one, for itself, for its followers and for the workers.
"""

from collections.abc import Callable, Mapping
from typing import Any

from paceline.server.checkpoints.completion import Completion
from paceline.server.membership.key_value_store import Asker
from paceline.server.membership.membership import Membership
from paceline.server.observability.checkpoint_record import CheckpointRecord
from paceline_core.state_machine import Knobs

ABSENT_SECONDS = 1.0  # without a connection, for a worker of which no further step is waited for


class LastSave:
    """Safe to call from any thread: what one thread does not see of another it is told again, 10 times a second.

    `unsaved` says whether updates were made that the newest checkpoint does not have.
    """

    def __init__(
        self,
        completion: Completion,
        membership: Membership,
        knobs: Knobs,
        record: CheckpointRecord,
        unsaved: Callable[[], bool],
    ) -> None:
        self._completion, self._membership, self._knobs = completion, membership, knobs
        self._record, self._unsaved = record, unsaved
        self._wanted = self._ends_all = False
        self._ended = dict[int, int]()  # workers that were told to, and need not wait: their incarnations
        self._step = 0  # of the checkpoint after which nobody goes on

    def due(self) -> bool:
        """Whether to save after the next update, though none is due."""
        return self._wanted and not self._completion.busy

    def begun(self, step: int) -> bool:
        """A checkpoint is being made; gives whether it is the last, after which workers make no further step."""
        last = self._ends_all
        self._wanted, self._step = False, step if last else self._step
        return last

    def may_end(self) -> bool:
        """Whether a server need not wait any more before it ends, with which the others end too."""
        if self._step:
            return not self._completion.busy
        if self._is_useless():
            return True
        self._wanted = self._ends_all = True
        return False

    def answer(self, asker: Asker, ask: Mapping[str, Any]) -> dict[str, Any]:
        """A worker asks whether the checkpoint of `step` is over, for which it has sent its state.

        One that is told to end and has sent none, with step 0, wants one: `over` when none is to be waited for.
        """
        step, over = int(ask["step"]), False
        if step:
            over = not self._completion.makes(step)
        elif ask["ends"]:
            over = self._is_useless()
            if not over and not self._completion.busy:  # else this worker will be asked for its state, or asks again
                self._wanted, self._ends_all = True, self._ends_all or not self._knobs.replaces_alone
        if over and ask["ends"]:
            self._ended[asker.worker] = asker.incarnation
        return {"over": over, "saved": self._record.step}

    def _is_useless(self) -> bool:
        """Whether there is nothing to save, or who would make the next update is gone."""
        if self._completion.busy:
            return False
        here, absent = self._membership.presence(ABSENT_SECONDS)
        # processes that their scripts have forked, for data, may hold their connections for some seconds
        ended = {w for w, its in self._ended.items() if self._membership.is_newest(w, its)}
        lacks_one = bool(absent | ended) and self._knobs.waits_for_all
        return not self._unsaved() or not here - ended or lacks_one
