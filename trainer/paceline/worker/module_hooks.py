"""Hooks on the user's module that stay behind when the module is copied or saved."""

import gc
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
from torch.utils.hooks import RemovableHandle

Hook = Callable[..., Any]


class Hooks(OrderedDict[int, Hook]):
    """A module's hooks; those in `own` are left out of every copy, which is a plain OrderedDict again."""

    def __init__(self, hooks: OrderedDict[int, Hook]) -> None:
        super().__init__(hooks)
        self.own: set[int] = set()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return OrderedDict((key, hook) for key, hook in self.items() if key not in self.own).__reduce_ex__(protocol)


def observe(module: torch.nn.Module, before: Hook, after: Hook) -> None:
    """Call `before` and `after` around the module's forward, by hooks that torch.save and deepcopy do not see."""
    _own(module, "_forward_pre_hooks", _beside_compiled_code(before))
    _own(module, "_forward_hooks", _beside_compiled_code(after))


def _own(module: torch.nn.Module, kind: str, hook: Hook) -> None:
    own = vars(module)  # a compiled module's own, which getattr and setattr leave to the module in it
    hooks = own[kind]
    if not isinstance(hooks, Hooks):
        hooks, old = Hooks(hooks), hooks
        own[kind] = hooks
        if old:
            _hand_over(old, hooks)
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    hooks.own.add(handle.id)


def _beside_compiled_code(hook: Hook) -> Hook:
    """The hook as torch.compile neither compiles it nor stops at it: what is within a graph is not measured."""

    def call(*arguments: Any) -> Any:
        return None if torch.compiler.is_compiling() else hook(*arguments)

    # torch.compiler.disable would do for a hook beside compiled code, but not for one that is traced into a full graph
    set_code_exec_strategy(call.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))
    return call


def _hand_over(old: OrderedDict[int, Hook], new: Hooks) -> None:
    """The handles that the script holds find their hooks by a reference to the dictionary: point them to the new."""
    for each in gc.get_objects():
        if type(each) is RemovableHandle and each.hooks_dict_ref() is old:
            each.hooks_dict_ref = weakref.ref(new)
