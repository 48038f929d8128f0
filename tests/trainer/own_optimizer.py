"""An optimizer of a user's own that treats each element by itself: Lion (arXiv 2302.06675, algorithm 2)."""

from collections.abc import Callable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                parameter.sub_(torch.lerp(parameter.grad, momentum, first).sign_(), alpha=group["lr"])
                momentum.lerp_(parameter.grad, 1 - second)
