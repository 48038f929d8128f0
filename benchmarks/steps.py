"""(b) The time of a step, beside plain DistributedDataParallel and one process."""

import statistics
from collections.abc import Iterator

from benchmarks.runs import processes, train

REPEATS = 5
WORKERS = 2

STEP = """
import json, sys, time, statistics, torch
torch.set_num_threads(1)
torch.manual_seed(0)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Linear(128, 128) for _ in range(4)])
    def forward(self, x):
        time.sleep({seconds})
        return self.layers(x)
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
{setup}
x, times = torch.randn(16, 128), []
for step in range({steps}):
    start = time.perf_counter()
    optimizer.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    {report}
    times.append(time.perf_counter() - start)
print(json.dumps({{"seconds": statistics.median(times[10:])}}))
"""
OURS = "import paceline; model, optimizer = paceline.distribute(model, optimizer)"
PLAIN = """
import torch.distributed as dist
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", store=dist.FileStore(folder + "/s", world), rank=rank, world_size=world)
import atexit; atexit.register(dist.destroy_process_group)
model = torch.nn.parallel.DistributedDataParallel(model)
"""


def rows() -> Iterator[str]:
    """The table, one line at a time."""
    yield "| step | one process | plain DDP | AllReduce | of DDP | synchronous PS | of DDP |"
    yield "|---|---|---|---|---|---|---|"
    for seconds, steps in ((0.001, 300), (0.01, 200), (0.1, 40)):
        rounds = [_once(seconds, steps) for _ in range(REPEATS)]
        alone, plain, ring, server = (1e3 * statistics.median(r[i] for r in rounds) for i in range(4))
        ring_ratio, server_ratio = (statistics.median(r[i] / r[1] for r in rounds) for i in (2, 3))
        yield (
            f"| {1e3 * seconds:g} ms | {alone:.2f} ms | {plain:.2f} ms | {ring:.2f} ms | {ring_ratio:.3f} "
            f"| {server:.2f} ms | {server_ratio:.3f} |"
        )


def _once(seconds: float, steps: int) -> tuple[float, float, float, float]:
    alone = processes(STEP.format(seconds=seconds, steps=steps, setup="", report=""), 1)["seconds"]
    plain = processes(STEP.format(seconds=seconds, steps=steps, setup=PLAIN, report=""), WORKERS)["seconds"]
    ours = STEP.format(seconds=seconds, steps=steps, setup=OURS, report="paceline.report(loss=loss)")
    ring = train(ours, WORKERS, strategy="AllReduce")[0]["seconds"]
    server = train(ours, WORKERS)[0]["seconds"]
    return alone, plain, ring, server
