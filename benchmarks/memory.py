"""Memory of a shard above an idle process with torch: parameters, optimizer state, a gradient for each worker, 64 MiB."""

import json
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.runs import environment, train

MIB = 256
WORKERS = 2

SCRIPT = """
import json, os, time, torch, paceline, psutil
model = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(16 << 18)) for _ in range({mib} // 16)])
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
for p in model.parameters():
    p.grad = torch.ones_like(p)
for _ in range(4):
    optimizer.step()
parent = psutil.Process().parent()
server = next(p for p in parent.children() if "paceline.server" in p.cmdline())
status = open(f"/proc/{{server.pid}}/status").read()
print(json.dumps({{"mib": int(status.split("VmHWM:")[1].split()[0]) / 1024}}))
"""


def rows() -> Iterator[str]:
    """The table."""
    base = idle("")
    optimizer = idle("torch.optim.Adam([torch.zeros(1)]);") - base
    peak = train(SCRIPT.format(mib=MIB), WORKERS)[0]["mib"]
    allowed = MIB * (1 + 2 + WORKERS) + 64
    yield "| parameters | optimizer | workers | peak above idle | allowed | idle with an optimizer, above idle |"
    yield "|---|---|---|---|---|---|"
    yield f"| {MIB} MiB | Adam | {WORKERS} | {peak - base:.0f} MiB | {allowed} MiB | {optimizer:.0f} MiB |"
    yield ""
    yield "The last column is torch._dynamo, which torch imports when any optimizer is made."


def idle(statement: str) -> float:
    """Peak memory of a process that has imported torch and done `statement`, in MiB."""
    code = (
        f"import torch, json; {statement} s = open('/proc/self/status').read(); "
        "print(json.dumps({'mib': int(s.split('VmHWM:')[1].split()[0]) / 1024}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["mib"])
