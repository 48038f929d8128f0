"""Whether all workers of a ring hold the same weights: their checksums of the same step are compared."""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from paceline_core.errors import WeightsDiffer

KEPT_STEPS = 16  # for which some worker's checksums have not come yet
NAMED = 3  # parameters that the error names

Sums = dict[str, int]


class ChecksumComparison:
    """Collects the workers' checksums. Safe to call from any thread."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._steps: dict[tuple[int, int], dict[int, Sums]] = {}  # step, pair -> worker -> checksums
        self._lock = threading.Lock()

    def hear(self, worker: int, told: Iterable[Mapping[str, Any]]) -> None:
        """A worker tells its checksums. Raises WeightsDiffer; KeyError, TypeError, ValueError for what is none."""
        for each in told:
            step, sums = (
                (int(each["step"]), int(each["pair"])),
                {str(name): int(value) for name, value in dict(each["sums"]).items()},
            )
            with self._lock:
                heard = self._steps.setdefault(step, {})
                heard[worker] = sums
                if len(heard) == self._world_size:
                    del self._steps[step]
                while len(self._steps) > KEPT_STEPS:
                    del self._steps[min(self._steps)]
            if len(heard) == self._world_size:
                _compare(step[0], heard)


def _compare(step: int, heard: Mapping[int, Sums]) -> None:
    """Name the workers that differ from most, or from worker 0 when there is no majority."""
    kinds = Counter(tuple(sorted(heard[worker].items())) for worker in sorted(heard))
    if len(kinds) == 1:
        return
    most = dict(kinds.most_common(1)[0][0])  # of equally many the first, which is worker 0's
    others = [worker for worker in sorted(heard) if heard[worker] != most]
    names = [n for n in most if any(heard[worker].get(n) != most[n] for worker in others)]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    raise WeightsDiffer(
        f"the weights of {', '.join(f'worker-{worker}' for worker in others)} differ from the others' after step "
        f"{step}: {', '.join(names[:NAMED])}{more}; do all workers make the same changes to them?"
    )
