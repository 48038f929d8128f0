"""The GPU's own clock: events in its stream, read when they have passed, so that nobody waits for the GPU.

A CPU clock shows when work was handed to the GPU, not when it was done: forward and backward look short, and whatever
first needs a result looks long. CUDA events around both tell the true times; the difference is moved between phases.
"""

from collections.abc import Mapping
from typing import Any

import torch

ABSORBING = ("encode", "wait", "other", "apply", "send")  # where the CPU waits for the GPU, the likeliest first
Marks = dict[str, Any]


class DeviceClock:
    """Records nothing: for models on the CPU, whose phases the CPU's clock shows as they are."""

    @staticmethod
    def of(device: torch.device) -> "DeviceClock":
        """The clock of a device."""
        return CudaClock(device) if device.type == "cuda" else DeviceClock()

    def mark(self, name: str) -> None:
        """The device begins here with `name` (forward, backward), or has the last gradient (ready)."""

    def end_step(self) -> Marks:
        """The marks of the step that ends, to be read later."""
        return {}

    def read(self, marks: Marks) -> tuple[float, float] | None:
        """Seconds of forward and of backward; None while the device has not come so far, or for a step without both."""
        del marks
        return None

    def memory(self) -> Mapping[str, int]:
        """Bytes of the device's memory, by state."""
        return {}


class CudaClock(DeviceClock):
    """Events in the current stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: Marks = {}

    def mark(self, name: str) -> None:
        """Put an event into the stream, unless the step has one of this name (accumulated backward passes)."""
        if name == "ready" or name not in self._marks:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks[name] = event

    def end_step(self) -> Marks:
        """The events of the step that ends."""
        marks, self._marks = self._marks, {}
        return marks

    def read(self, marks: Marks) -> tuple[float, float] | None:
        """Seconds between the events, once the last has passed."""
        if not {"forward", "backward", "ready"} <= marks.keys() or not marks["ready"].query():
            return None
        forward = marks["forward"].elapsed_time(marks["backward"]) / 1e3
        return forward, marks["backward"].elapsed_time(marks["ready"]) / 1e3

    def memory(self) -> Mapping[str, int]:
        """What the caching allocator tells."""
        return {
            "allocated": torch.cuda.memory_allocated(self._device),
            "reserved": torch.cuda.memory_reserved(self._device),
            "peak": torch.cuda.max_memory_allocated(self._device),
        }


def with_device_times(phases: Mapping[str, float], forward: float, backward: float) -> dict[str, float]:
    """The phases with the device's times of forward and backward; the sum stays what it was.

    What the device needed more than the CPU showed is taken from the phases in which the CPU waited for it, and no
    more than they hold.
    """
    out = dict(phases)
    for phase, seconds in (("forward", forward), ("backward", backward)):
        missing = seconds - out.get(phase, 0.0)
        for source in ABSORBING:
            moved = min(max(0.0, missing), out.get(source, 0.0))
            out[source] = out.get(source, 0.0) - moved
            out[phase] = out.get(phase, 0.0) + moved
            missing -= moved
    return {p: s for p, s in out.items() if p in phases or s > 0}
