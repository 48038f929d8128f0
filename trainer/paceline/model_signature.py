"""What a worker trains, as plain data: workers must agree on it, and servers build their shard from it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from paceline_core.buckets import Parameter, ShardPlan, plan

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
              "uint8": 1, "bool": 1, "complex64": 8, "complex128": 16}  # fmt: skip
MOST_BYTES = 1 << 48  # of a tensor
TRAINABLE = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's name, shape and dtype (torch's name without `torch.`)."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """How many elements it has."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.numel * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Signature:
    """Model and optimizer of a worker.

    `parameters` are those the optimizer updates, in the order of its groups, and `groups` holds for each of them the
    index of its group; `frozen` are the others; `aliases` maps each further name of a tied tensor to its first name.
    """

    optimizer: str
    settings: tuple[dict[str, Any], ...]  # one for each parameter group
    parameters: tuple[TensorInfo, ...]
    groups: tuple[int, ...]
    frozen: tuple[TensorInfo, ...]
    buffers: tuple[TensorInfo, ...]
    transient: tuple[str, ...]  # buffers that are not part of the state dict
    aliases: dict[str, str]
    model: int = 0  # which of the script's models, in the order of their first paceline.distribute()

    def to_json(self) -> dict[str, Any]:
        """Its form on the wire and in signature.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Signature":
        """Read that form. Raises ValueError when it is not one."""
        try:
            tensors = {key: tuple(map(_tensor, value[key])) for key in ("parameters", "frozen", "buffers")}
            return cls(
                str(value["optimizer"]),
                tuple(dict(s) for s in value["settings"]),
                groups=tuple(map(int, value["groups"])),
                transient=tuple(map(str, value["transient"])),
                aliases=dict(value["aliases"]),
                model=int(value["model"]),
                **tensors,
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"not a signature: {error}") from error

    @property
    def untrained(self) -> tuple[TensorInfo, ...]:
        """What travels whole, and only when it changed: frozen parameters, then buffers."""
        return self.frozen + self.buffers

    def plan(self, shards: int, bucket_bytes: int) -> tuple[ShardPlan, ...]:
        """How the parameters are cut over the shards."""
        return plan([Parameter(p.name, p.numel, ITEM_BYTES[p.dtype]) for p in self.parameters], shards, bucket_bytes)

    def difference(self, other: "Signature") -> str | None:
        """The first thing in which `other` differs, in words; None when they agree."""
        if self.model != other.model:
            return f"model number {other.model} instead of {self.model} in this call of paceline.distribute()"
        if self.optimizer != other.optimizer:
            return f"optimizer {other.optimizer} instead of {self.optimizer}"
        for kind in ("parameters", "frozen", "buffers"):
            mine, theirs = getattr(self, kind), getattr(other, kind)
            for a, b in zip(mine, theirs, strict=False):
                if a != b:
                    return f"{kind}: {_described(b)} instead of {_described(a)}"
            if len(mine) != len(theirs):
                extra = (mine + theirs)[min(len(mine), len(theirs)) :]
                return f"{len(theirs)} {kind} instead of {len(mine)} (for example {extra[0].name})"
        if self.groups != other.groups:
            return "another assignment of parameters to groups"
        if self.settings != other.settings:
            return f"optimizer settings {list(other.settings)} instead of {list(self.settings)}"
        return None


def _tensor(value: Mapping[str, Any]) -> TensorInfo:
    found = TensorInfo(str(value["name"]), tuple(map(int, value["shape"])), str(value["dtype"]))
    if found.dtype not in ITEM_BYTES or any(size < 0 for size in found.shape) or found.nbytes > MOST_BYTES:
        raise ValueError(f"{found.name[:40]} is no tensor")
    return found


def _described(tensor: TensorInfo) -> str:
    return f"{tensor.name} {list(tensor.shape)} {tensor.dtype}"
