"""With what a worker measures itself: one set for the process, made before the script's first call."""

import platform
import time
from dataclasses import dataclass

import torch

from paceline import metrics
from paceline.metrics import Instruments
from paceline.process_trace import ProcessTrace
from paceline.worker.observability.injected_delay import InjectedDelay
from paceline.worker.observability.phase_clock import PhaseClock
from paceline_core import metric_series
from paceline_core.launch import Launch


@dataclass(frozen=True)
class Measuring:
    """The metrics, the clock of phases, the trace, and the delay that makes a straggler."""

    metrics: Instruments
    clock: PhaseClock
    injected_delay: InjectedDelay
    trace: ProcessTrace

    @classmethod
    def of(cls, launch: Launch) -> "Measuring":
        """Those of the worker that `launch` describes."""
        return cls(
            metrics.of_worker(launch.training, launch.ordinal, metric_series.level(launch.spec)),
            PhaseClock(),
            InjectedDelay(launch.slowdown),
            ProcessTrace(launch.name, time.perf_counter()),
        )

    def describe(self, device: torch.device, backend: str, node: str) -> None:
        """Tell where this worker runs."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        labels = (name, backend, torch.__version__, metrics.installed("paceline"), node or platform.node())
        self.metrics.set(metrics.INFO, 1, *labels)

    def clocks_compared(self, offset: float) -> None:
        """The receiver's clock is so many seconds ahead of this one."""
        self.trace.offset = offset
        self.metrics.set(metrics.CLOCK_OFFSET, offset)
