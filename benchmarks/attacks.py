"""(e) What an attack costs: the steps of two honest workers with and without it, in turns, and the server's growth."""

import multiprocessing
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.attackers import ATTACKS, LARGE, Target
from benchmarks.runs import begin
from paceline_core.launch import Launch

WORKERS, ROUNDS, SECONDS, SETTLED_STEPS = 2, 5, 2.0, 200
RATES = ((100, 1), (1000, 10))  # attempts in a second of one attacker: small ones, and those of MiB
LIMIT, LIMIT_MIB = 0.10, 64

# Each step sleeps: on two cores the attacker's own computing would slow any that computes for all of it.
SCRIPT = """
import json, time, torch, paceline
torch.set_num_threads(1)
model = torch.nn.Sequential(*[torch.nn.Linear(128, 128) for _ in range(4)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
model, optimizer = paceline.distribute(model, optimizer)
x = torch.randn(16, 128)
out = open(f"steps-{paceline.rank()}", "w", buffering=1)
while True:
    began = time.time()
    optimizer.zero_grad()
    model(x).square().mean().backward()
    time.sleep(0.01)
    optimizer.step()
    out.write(f"{began} {time.time() - began}\\n")
"""


def attack(target: Target, name: str, rate: float, seconds: float) -> None:
    """So many attempts in a second, as far as one process can."""
    began, done = time.monotonic(), 0
    while (now := time.monotonic() - began) < seconds:
        if done > now * rate:
            time.sleep(0.001)
            continue
        try:
            ATTACKS[name](target)
        except Exception:  # it is refused
            time.sleep(0.001)
        done += 1


def rows() -> Iterator[str]:
    """The table, one line at a time."""
    yield f"| attack | attempts a second | step without | with | slower, median of {ROUNDS} | server: CPU of an attempt | server's peak grows |"
    yield "|---|---|---|---|---|---|---|"
    running, folder = begin(SCRIPT, WORKERS)
    try:
        server, target = _target(running)
        log = folder / "steps-0"
        while not log.exists() or len(log.read_text().splitlines()) < SETTLED_STEPS:
            time.sleep(0.2)
        for small, large in RATES:
            for name in ATTACKS:
                yield _row(log, server, target, name, large if name in LARGE else small)
    finally:
        running.terminate()
        running.wait(60)


def _row(log: Path, server: psutil.Process, target: Target, name: str, rate: float) -> str:
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # the peak is counted from now on
    before = server.memory_info().rss
    windows = [_window(server, target, name, rate) for _ in range(ROUNDS)]
    grown = _peak(server) - before
    steps = [tuple(map(float, line.split())) for line in log.read_text().splitlines()[:-1]]

    def median(start: float) -> float:
        return statistics.median(took for at, took in steps if start <= at < start + SECONDS)

    pairs = [(median(calm), median(attacked)) for calm, attacked, _ in windows]
    without, during = (1e3 * statistics.median(p[i] for p in pairs) for i in range(2))
    slower = statistics.median(b / a - 1 for a, b in pairs)
    cpu = 1e3 * statistics.median(more for *_, more in windows) / (rate * SECONDS)
    steps_told = f"{without:.2f} ms | {during:.2f} ms | {slower:+.1%}"
    return f"| {name} | {rate:g} | {steps_told} | {cpu:.2f} ms | {grown / 2**20:.0f} MiB |"


def _window(server: psutil.Process, target: Target, name: str, rate: float) -> tuple[float, float, float]:
    """When a calm time and one of attack began, and by how much the server's CPU seconds differ."""
    calm, used = time.time(), _cpu(server)
    time.sleep(SECONDS)
    usual = _cpu(server) - used
    process = multiprocessing.get_context("fork").Process(target=attack, args=(target, name, rate, SECONDS + 0.2))
    process.start()
    time.sleep(0.2)
    attacked, used = time.time(), _cpu(server)
    time.sleep(SECONDS)
    more = _cpu(server) - used - usual
    process.join()
    time.sleep(0.5)
    return calm, attacked, more


def _cpu(server: psutil.Process) -> float:
    times = server.cpu_times()
    return times.user + times.system


def _target(running: "subprocess.Popen[str]") -> tuple[psutil.Process, Target]:
    """The server of a run that trains, and what a worker of it knows."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        found = {}
        for process in psutil.Process(running.pid).children(recursive=True):
            try:
                launch = Launch.from_environment(process.environ())
            except psutil.Error:
                continue
            if launch is not None:
                found[launch.name] = process, launch
        if {"ps-0", "worker-0"} <= found.keys():
            (server, _), (_, worker) = found["ps-0"], found["worker-0"]
            metrics = [c.laddr.port for c in server.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
            tls = str(Path(worker.tls).with_name("worker-1")) if worker.tls else None
            ports = [p for p in metrics if not worker.servers[0].endswith(f":{p}")]
            if ports:
                return server, Target(
                    worker.servers[0], f"127.0.0.1:{ports[0]}", bytes.fromhex(worker.training_id), tls
                )
        time.sleep(0.2)
    raise TimeoutError("the run does not begin")


def _peak(server: psutil.Process) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
