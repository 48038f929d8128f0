"""On a GPU: the device's own times of forward and backward, without waiting for it."""

import time

import pytest
import torch

from paceline.worker.observability.cuda_events import DeviceClock

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: CUDA events time a stream")


@needs_gpu
def test_events_tell_the_devices_time_and_nobody_waits() -> None:
    device = torch.device("cuda", 0)
    clock = DeviceClock.of(device)
    a = torch.randn(4096, 4096, device=device, requires_grad=True)
    for _ in range(3):
        (a @ a).sum().backward()
    torch.cuda.synchronize()
    began = time.perf_counter()
    clock.mark("forward")
    out = a
    for _ in range(20):
        out = out @ a
    clock.mark("backward")
    out.sum().backward()
    clock.mark("ready")
    marks = clock.end_step()
    handed_over = time.perf_counter() - began
    torch.cuda.synchronize()
    took = time.perf_counter() - began
    times = clock.read(marks)
    assert times is not None
    assert sum(times) == pytest.approx(took, rel=0.1)
    assert handed_over < 0.5 * took
    assert set(clock.memory()) == {"allocated", "reserved", "peak"}


def test_on_a_cpu_nothing_is_recorded() -> None:
    clock = DeviceClock.of(torch.device("cpu"))
    clock.mark("forward")
    assert clock.end_step() == {}
    assert clock.read({}) is None
    assert not clock.memory()
