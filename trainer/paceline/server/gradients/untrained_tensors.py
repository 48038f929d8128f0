"""What travels whole beside the parameters and only when it changed: frozen parameters, and buffers as BatchNorm's."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from paceline.model_signature import TensorInfo


@dataclass(frozen=True)
class UntrainedTensor:
    """The bytes of one tensor, the worker that they came from, and when (a count of all that came)."""

    data: bytes
    when: int
    worker: int


class UntrainedTensors:
    """The newest of each tensor, by its number in the signature."""

    def __init__(self, infos: Sequence[TensorInfo]) -> None:
        self._infos = infos
        self._held: dict[int, UntrainedTensor] = {}
        self._came = 0
        self._told: dict[int, int] = {}  # worker -> up to when it knows them

    def take(self, worker: int, given: Mapping[int, bytes]) -> None:
        """Take over what a worker sent."""
        self._came += 1
        self._held |= {number: UntrainedTensor(data, self._came, worker) for number, data in given.items()}

    def news(self, worker: int, everything: bool = False, touched: Collection[int] = ()) -> dict[int, bytes]:
        """What came since this worker's last reply, but for its own, and what it has `touched`: it gets that back."""
        known, self._told[worker] = self._told.get(worker, -1), self._came
        return {
            number: it.data
            for number, it in sorted(self._held.items())
            if everything or number in touched or (it.when > known and it.worker != worker)
        }

    def all(self) -> dict[str, bytes]:
        """The bytes of each tensor, by name."""
        return {self._infos[number].name: it.data for number, it in self._held.items()}
