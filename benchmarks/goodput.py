"""(a) Push and pull: bits of gradients and parameters in a second, beside iperf3, gloo and a Python TLS socket pair."""

import json
import shutil
import socket
import statistics
import subprocess
from collections.abc import Iterator

from benchmarks.runs import processes, train

REPEATS = 3

EXCHANGE = """
import json, os, time, torch, paceline
torch.set_num_threads(1)
MIB, STEPS = {mib}, {steps}
pieces = max(1, MIB // 16)
model = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(MIB // pieces << 18)) for _ in range(pieces)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model, optimizer = paceline.distribute(model, optimizer)
for p in model.parameters():
    p.grad = torch.ones_like(p)
for _ in range(2):
    optimizer.step()
start = time.perf_counter()
for _ in range(STEPS):
    optimizer.step()
seconds = time.perf_counter() - start
print(json.dumps({{"gbit": paceline.world_size() * 2 * STEPS * MIB * 8 * 1.048576e6 / seconds / 1e9}}))
"""

GLOO = """
import json, sys, time, torch, torch.distributed as dist
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", store=dist.FileStore(folder + "/s", world), rank=rank, world_size=world)
x = torch.ones(64 << 18)
dist.all_reduce(x)
start = time.perf_counter()
for _ in range(6): dist.all_reduce(x)
seconds = time.perf_counter() - start
print(json.dumps({"gbit": 6 * world * 2 * (world - 1) / world * 64 * 8 * 1.048576e6 / seconds / 1e9}))
"""

TLS_PAIR = """
import json, socket, ssl, sys, time, pathlib
rank, folder = int(sys.argv[1]), pathlib.Path(sys.argv[3])
import paceline_credentials
from paceline.wire import endpoint
GOAL = 2 << 30
if rank == 0:
    paceline_credentials.write(folder / "made", "bench", ["ps-0"], 1)
    listener = socket.create_server(("127.0.0.1", 0))
    (folder / "port.tmp").write_text(str(listener.getsockname()[1])); (folder / "port.tmp").rename(folder / "port")
    side = endpoint.server_context(str(folder / "made/ps-0")).wrap_socket(listener.accept()[0], server_side=True)
    buffer, got, start = memoryview(bytearray(1 << 20)), 0, time.perf_counter()
    while got < GOAL: got += side.recv_into(buffer)
    print(json.dumps({"gbit": 8 * got / (time.perf_counter() - start) / 1e9}))
else:
    while not (folder / "port").exists(): time.sleep(0.01)
    channel = endpoint.connect("127.0.0.1:" + (folder / "port").read_text(), bytes(16), "ps-0", str(folder / "made/worker-0"), 5, 30)
    data = memoryview(bytearray(4 << 20))
    for _ in range(GOAL // len(data)): channel.connection.sendall(data)
"""

RPC = """
import json, os, sys, time, torch, torch.distributed.rpc as rpc
rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
def exchange(x): return x
options = rpc.TensorPipeRpcBackendOptions(init_method="file://" + folder + "/s")
rpc.init_rpc(f"w{rank}", rank=rank, world_size=world, rpc_backend_options=options)
if rank == 0:
    import operator
    x = torch.ones(64 << 18)
    rpc.rpc_sync("w1", operator.pos, (x,))
    start = time.perf_counter()
    for _ in range(6): rpc.rpc_sync("w1", torch.Tensor.detach, (x,))
    print(json.dumps({"gbit": 6 * 2 * 64 * 8 * 1.048576e6 / (time.perf_counter() - start) / 1e9}))
rpc.shutdown()
"""


def iperf() -> float:
    """One stream over loopback, in Gbit/s."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    server = subprocess.Popen(["iperf3", "-s", "-1", "-p", port, "--forceflush"], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    server.stdout.readline()
    server.stdout.readline()
    done = subprocess.run(
        ["iperf3", "-c", "127.0.0.1", "-p", port, "-t", "2", "-J"], capture_output=True, text=True, check=True
    )
    server.communicate()
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9


def cases() -> Iterator[tuple[str, int, int, int, bool]]:
    """MiB of parameters, workers, shards, TLS."""
    for mib, workers, shards, tls in (
        (64, 1, 1, False), (64, 2, 1, False), (64, 4, 1, False), (256, 2, 1, False), (256, 2, 2, False),
        (256, 4, 2, False), (1024, 2, 1, False), (64, 8, 2, False), (64, 2, 1, True), (256, 2, 2, True), (256, 4, 1, True),
    ):  # fmt: skip
        yield f"{mib} MiB, {workers} workers, {shards} shards, {'TLS' if tls else 'plain'}", mib, workers, shards, tls


def rows() -> Iterator[str]:
    """The table, one line at a time."""
    if shutil.which("iperf3") is None:
        yield "skipped: iperf3 is not installed"
        return
    yield "| case | Gbit/s | of iperf3 | iperf3 |"
    yield "|---|---|---|---|"
    for name, script, count in (("gloo all-reduce, 64 MiB, 2 processes", GLOO, 2), ("Python TLS socket pair", TLS_PAIR, 2),
                                ("torch.distributed.rpc, 64 MiB there and back", RPC, 2)):  # fmt: skip
        pairs = [(processes(script, count).get("gbit", 0.0), iperf()) for _ in range(REPEATS)]
        yield line(name, pairs)
    for name, mib, workers, shards, tls in cases():
        script = EXCHANGE.format(mib=mib, steps=max(4, 1024 // mib // workers))
        pairs = [(train(script, workers, servers=shards, tls=tls)[0]["gbit"], iperf()) for _ in range(REPEATS)]
        yield line(name, pairs)


def line(name: str, pairs: list[tuple[float, float]]) -> str:
    """Medians of the values and of the ratios of neighbours in time."""
    value, base = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    ratio = statistics.median(a / b for a, b in pairs)
    return f"| {name} | {value:.1f} | {ratio:.2f} | {base:.1f} |"
