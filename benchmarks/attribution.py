"""(e) Is the right worker named, for the right reason, in time, and nobody without one?"""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.runs import watch

MODES = ("Synchronous", "Asynchronous", "AllReduce")
PARTS = ("data", "compute", "send")
FACTORS = (1.2, 1.5, 2.0, 5.0)
WORKERS, SLOW = 8, 5
STEP_SECONDS = 0.1  # of which most is sleeping, so that eight workers fit two cores
CLEAN_RUNS, CLEAN_STEPS = 20, 150
STEPS = {1.2: 200, 1.5: 200, 2.0: 150, 5.0: 60}
LIMIT_SECONDS = 60.0
FEWEST_LOOKS = 10  # in a run, twice a second

SCRIPT = """
import time, torch, paceline
torch.set_num_threads(1)
torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(512, 512)
    def forward(self, x):
        time.sleep({seconds})
        return self.layer(x)
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
data = torch.utils.data.TensorDataset(torch.randn(4 * {workers} * {steps}, 512))
batches = paceline.shard(torch.utils.data.DataLoader(data, batch_size=4, drop_last=True))
model, optimizer = paceline.distribute(model, optimizer)
for (x,) in batches:
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    paceline.report(loss=loss)
"""


def rows() -> Iterator[str]:
    """The table, one line at a time."""
    yield "| mode | what is slow | 1.2 times | 1.5 times | 2 times | 5 times |"
    yield "|---|---|---|---|---|---|"
    right = wanted = 0
    for mode in MODES:
        for part in PARTS:
            found = {factor: _slowed(mode, part, factor) for factor in FACTORS}
            right += sum(ok for factor, (ok, _) in found.items() if factor >= 1.5)
            wanted += sum(factor >= 1.5 for factor in FACTORS)
            yield f"| {mode} | {part} | " + " | ".join(text for _, text in found.values()) + " |"
    yield ""
    yield f"From 1.5 times up: {right} of {wanted} named rightly, with the right cause, within {LIMIT_SECONDS:g} s."
    clean = [_clean(MODES[number % len(MODES)]) for number in range(CLEAN_RUNS)]
    yield f"Runs without a straggler: {CLEAN_RUNS}, of which somebody was named at any time in {sum(clean)}."


def _slowed(mode: str, part: str, factor: float) -> tuple[bool, str]:
    """Whether the worker was named for the right cause, and what is to be said about it."""
    amount = f"worker-{SLOW}={part}:{1e3 * STEP_SECONDS * (factor - 1):g}ms"
    for seconds, status in watch(_script(STEPS[factor]), WORKERS, "--slow", amount, strategy=mode):
        named = _named(status)
        if named:
            worker, cause = named
            ok = (worker, cause) == (SLOW, part) and seconds <= LIMIT_SECONDS
            return ok, f"{'right' if ok else f'worker-{worker}, {cause}'} after {seconds:.0f} s"
    return False, "nobody"


def _clean(mode: str) -> bool:
    """Whether anybody was named at any time."""
    told = [_named(status) for _, status in watch(_script(CLEAN_STEPS), WORKERS, strategy=mode)]
    if len(told) < FEWEST_LOOKS:
        raise RuntimeError(f"a run in which nobody could be named: {len(told)} looks")
    return any(told)


def _script(steps: int) -> str:
    return SCRIPT.format(seconds=STEP_SECONDS, workers=WORKERS, steps=steps)


def _named(status: Mapping[str, Any]) -> tuple[int, str] | None:
    """Who is named as slow, and the cause that is told."""
    if status["verdict"]:
        return status["verdict"]["worker"], status["verdict"]["cause"]
    return next(((w["worker"], w["cause"]) for w in status["workers"] if "slow" in w["verdicts"]), None)
