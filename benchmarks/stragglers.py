"""(c) Time to a loss with one of four workers ten times slower."""

import csv
import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks.runs import train

REPEATS = 3
WORKERS, FACTOR = 4, 10
IDEAL = WORKERS / (WORKERS - 1 + 1 / FACTOR)
LOSS = 0.3

DIGITS = """
import time, torch, paceline
from paceline.examples.digits import data, network
torch.manual_seed(0)
model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.5)
batches = paceline.shard(torch.utils.data.DataLoader(data()[0], batch_size=16, shuffle=True, drop_last=True))
model, optimizer = paceline.distribute(model, optimizer)
for epoch in range(6):
    for x, y in batches:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        time.sleep(0.01)
        loss.backward()
        optimizer.step()
        paceline.report(loss=loss)
"""


def rows() -> Iterator[str]:
    """The table, one line at a time."""
    yield f"| strategy | seconds to a loss of {LOSS} | of no straggler | ideal |"
    yield "|---|---|---|---|"
    rounds = [[_seconds(strategy, slow) for strategy, slow in CASES] for _ in range(REPEATS)]
    for index, (strategy, slow) in enumerate(CASES):
        value = statistics.median(r[index] for r in rounds)
        ratio = statistics.median(r[index] / r[index - index % 2] for r in rounds)
        name, ideal = ("worker-3 10 times slower", IDEAL) if slow else ("no straggler", 1.0)
        yield f"| {strategy}, {name} | {value:.2f} | {ratio:.2f} | {ideal:.2f} |"
    yield ""
    yield "The ideal: as many samples a second as the four workers compute together, each worth as much as any other."


CASES = [("Synchronous", False), ("Synchronous", True), ("Asynchronous", False), ("Asynchronous", True)]


def _seconds(strategy: str, slow: bool) -> float:
    arguments = ["--slow", f"worker-3={FACTOR}x"] if slow else []
    _, folder = train(DIGITS, WORKERS, *arguments, strategy=strategy)
    return time_to(folder / "steps.csv")


def time_to(file: Path) -> float:
    """Seconds from the first step until the mean of the last 20 losses is below LOSS."""
    with file.open() as opened:
        steps = sorted((float(r["time"]), float(r["loss"])) for r in csv.DictReader(opened) if r["loss"])
    for index in range(20, len(steps)):
        if statistics.fmean(loss for _, loss in steps[index - 20 : index]) < LOSS:
            return steps[index][0] - steps[0][0]
    return float("nan")
