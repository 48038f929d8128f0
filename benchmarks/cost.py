"""(d) What measuring costs: blocks of steps with all of it take turns, in one run, with blocks that have it taken out."""

import statistics
from collections.abc import Iterator

from benchmarks.runs import train

WORKERS, SECONDS = 2, 0.01
PAIRS, BLOCK = 60, 100  # a block takes more than a second: what a thread does twice a second falls into each of them
MODES = ("Synchronous", "Asynchronous", "AllReduce")
LIMIT = 0.01

# Without: hooks, marks, rows, traces and reports do nothing; what the exchange itself needs stays.
SCRIPT = """
import functools, json, time, torch, paceline
from paceline.worker.observability import phase_clock, phase_hooks, step_record
measured = True

def only_when_measured(owner, name, otherwise=lambda *a, **k: None):
    original = getattr(owner, name)
    setattr(owner, name, functools.wraps(original)(
        lambda *a, **k: original(*a, **k) if measured else otherwise(*a, **k)))

def keep_last(self, number, last, *_):
    self.last = last
    self._observer.step_ended()

only_when_measured(phase_clock.PhaseClock, "enter")
for name in ("_forward", "_forward_done", "backward_ended", "gradient_ready"):
    only_when_measured(phase_hooks.Observer, name)
only_when_measured(step_record.StepRecords, "finish", keep_last)
only_when_measured(step_record.StepRecords, "sample_norm")

torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(*[torch.nn.Linear(128, 128) for _ in range(4)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
model, optimizer = paceline.distribute(model, optimizer)
x = torch.randn(16, 128)

def block(count):
    start = time.perf_counter()
    for _ in range(count):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        time.sleep({seconds})
        loss.backward()
        optimizer.step()
        if measured:
            paceline.report(loss=loss)
    return (time.perf_counter() - start) / count

pairs = []
for number in range({pairs} + 1):
    pair = {{}}
    for measured in (True, False) if number % 2 else (False, True):
        block({count} // 10)
        pair[measured] = block({count})
    pairs.append([pair[False], pair[True]])
print(json.dumps({{"pairs": pairs[1:]}}))
"""


def rows() -> Iterator[str]:
    """The table, one line at a time."""
    yield f"| mode | a {1e3 * SECONDS:g} ms step without | with | cost, median of {PAIRS} pairs | half of the pairs | limit |"
    yield "|---|---|---|---|---|---|"
    script = SCRIPT.format(seconds=SECONDS, pairs=PAIRS, count=BLOCK)
    for mode in MODES:
        pairs = train(script, WORKERS, strategy=mode)[0]["pairs"]
        without, measured = (1e3 * statistics.median(p[i] for p in pairs) for i in range(2))
        low, cost, high = statistics.quantiles([b / a - 1 for a, b in pairs])
        yield (
            f"| {mode} | {without:.3f} ms | {measured:.3f} ms | {cost:+.2%} | {low:+.2%} to {high:+.2%} | {LIMIT:.0%} |"
        )
