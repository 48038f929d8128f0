"""Memory of a shard above an idle process with torch: parameters, optimizer state, a gradient for each worker, 64 MiB."""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.runs import environment, train

MIB = 256
WORKERS = 2
REPEATS = 5

SCRIPT = """
import json, os, time, torch, paceline, psutil
model = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(16 << 18)) for _ in range({mib} // 16)])
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
for p in model.parameters():
    p.grad = torch.ones_like(p)
for _ in range(8):
    optimizer.step()
parent = psutil.Process().parent()
server = next(p for p in parent.children() if "paceline.server" in p.cmdline())
status = open(f"/proc/{{server.pid}}/status").read()
print(json.dumps({{"mib": int(status.split("VmHWM:")[1].split()[0]) / 1024}}))
"""


def rows() -> Iterator[str]:
    """The table, one line at a time."""
    allowed = MIB * (1 + 2 + WORKERS) + 64
    yield f"| parameters | optimizer | workers | strategy | peak above idle, median | highest of {REPEATS} | allowed |"
    yield "|---|---|---|---|---|---|---|"
    for strategy in ("Synchronous", "Asynchronous"):
        base = idle()
        peaks = [train(SCRIPT.format(mib=MIB), WORKERS, strategy=strategy)[0]["mib"] - base for _ in range(REPEATS)]
        yield (
            f"| {MIB} MiB | Adam | {WORKERS} | {strategy} "
            f"| {statistics.median(peaks):.0f} MiB | {max(peaks):.0f} MiB | {allowed} MiB |"
        )


def idle() -> float:
    """Peak memory of a process that has imported torch, in MiB."""
    code = (
        "import torch, json; s = open('/proc/self/status').read(); "
        "print(json.dumps({'mib': int(s.split('VmHWM:')[1].split()[0]) / 1024}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["mib"])
