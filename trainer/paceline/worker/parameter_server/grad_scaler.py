"""torch's GradScaler and a parameter server: gradients travel scaled, and all workers skip the same updates.

GradScaler.step() hands an optimizer that declares `_step_supports_amp_scaling` two attributes, for the time of its
step: `grad_scale` (None when the script has unscaled the gradients itself) and `found_inf`.
"""

import sys
from types import FrameType
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler


def scaling(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a COMMIT says of it: `unscale`, by which to multiply the gradients, and `found_inf`."""
    found_inf, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
    if found_inf is None:
        return {}
    said: dict[str, Any] = {"found_inf": bool(found_inf.item())}
    return said if scale is None else said | {"unscale": 1.0 / float(scale)}


def tell_scaler(optimizer: torch.optim.Optimizer) -> None:
    """Another worker found an infinite gradient: let this one's GradScaler lower its scale too.

    To be called within the optimizer's step. GradScaler tells the optimizer nothing of itself, so it is looked for
    among the calls that led here.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is GradScaler.step.__code__ and frame.f_locals.get("optimizer") is optimizer:
            for found in frame.f_locals["optimizer_state"]["found_inf_per_device"].values():
                found.fill_(1.0)
            return
        frame = frame.f_back
