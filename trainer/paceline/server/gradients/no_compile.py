"""Keep torch.compile's front end out of a server: it steps optimizers eagerly and has nothing to compile.

torch.optim imports torch._dynamo when the first optimizer is made, only to mark its methods as not to be compiled.
That is 150 MiB and one to two seconds for each shard (docs/decisions/0005). In its place stands a module whose marks
mean nothing; a release of torch that asks it for more fails with AttributeError in every test of a server.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

MODULE = "torch._dynamo"


class _Eager(ModuleType):
    """What torch.optim asks of torch._dynamo, in a process that never compiles."""

    @staticmethod
    def disable(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        return function

    @staticmethod
    def graph_break(*_: object, **__: object) -> None:
        return None


def install() -> None:
    """From now on this process cannot compile models; nothing happens if it has begun to already."""
    if MODULE not in sys.modules:
        sys.modules[MODULE] = torch._dynamo = _Eager(MODULE)
