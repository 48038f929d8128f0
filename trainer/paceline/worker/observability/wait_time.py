"""The time in which a worker waits for the others' gradients, or for worker 0's buffers."""

from collections.abc import Callable

import torch

from paceline.worker.observability.phase_hooks import Observer


class Waiting:
    """Marks that time on the clock; `active` while it lasts."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.active = False
        self.gradient_ready: Callable[[torch.Tensor], None] = observer.gradient_ready

    def script_ended(self) -> None:
        """The script's own work between backward and step is over."""
        self._observer.backward_ended()

    def begin(self) -> None:
        """Wait for gradients: if within backward, since this worker's last was ready."""
        clock = self._observer.clock
        self._observer.device.mark("ready")
        clock.enter("wait", at=self._observer.last_ready if clock.phase == "backward" else None)
        self.active = True

    def begin_buffers(self) -> None:
        """Wait for worker 0's buffers."""
        self._observer.clock.enter("wait")
        self.active = True

    def end(self) -> None:
        """What it waited for is here."""
        self.active = False
        self._observer.clock.enter("other")
