"""(d) What measuring costs: the same run with all of it, and with the measuring taken out of the worker."""

import statistics
from collections.abc import Iterator

from benchmarks.runs import train

REPEATS = 7
WORKERS, SECONDS, STEPS = 2, 0.01, 400
MODES = ("Synchronous", "Asynchronous", "AllReduce")
LIMIT = 0.01

SCRIPT = """
import json, time, statistics, torch, paceline
torch.set_num_threads(1)
torch.manual_seed(0)
{patch}
model = torch.nn.Sequential(*[torch.nn.Linear(128, 128) for _ in range(4)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
model, optimizer = paceline.distribute(model, optimizer)
x, times = torch.randn(16, 128), []
for step in range({steps}):
    start = time.perf_counter()
    optimizer.zero_grad()
    loss = model(x).square().mean()
    time.sleep({seconds})
    loss.backward()
    optimizer.step()
    {report}
    times.append(time.perf_counter() - start)
print(json.dumps({{"seconds": statistics.median(times[20:])}}))
"""
# Hooks, marks, rows, traces and reports do nothing; what the exchange itself needs stays.
WITHOUT = """
from paceline.worker import clock, observer, steps
clock.PhaseClock.enter = lambda self, phase, at=None: None
observer.Observer._forward = observer.Observer._forward_done = lambda self, *_: None
observer.Observer.gradient_ready = lambda self, _: None
steps.Steps.finish = lambda self, number, last, latency, traffic, sending=0.0: setattr(self, "last", last)
steps.Steps.look_at = lambda self, parameters: None
"""


def rows() -> Iterator[str]:
    """The table, one line at a time."""
    yield f"| mode | a {1e3 * SECONDS:g} ms step without | with | cost, median of {REPEATS} | limit |"
    yield "|---|---|---|---|---|"
    for mode in MODES:
        rounds = [(_once(mode, measured=False), _once(mode, measured=True)) for _ in range(REPEATS)]
        without, measured = (1e3 * statistics.median(r[i] for r in rounds) for i in range(2))
        cost = statistics.median(b / a - 1 for a, b in rounds)
        yield f"| {mode} | {without:.3f} ms | {measured:.3f} ms | {cost:+.2%} | {LIMIT:.0%} |"


def _once(mode: str, measured: bool) -> float:
    report = "paceline.report(loss=loss)" if measured else "pass"
    script = SCRIPT.format(patch="" if measured else WITHOUT, steps=STEPS, seconds=SECONDS, report=report)
    seconds: float = train(script, WORKERS, strategy=mode)[0]["seconds"]
    return seconds
