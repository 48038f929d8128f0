"""What an attacker can make a server's process hold, at its peak: less than 64 MiB, whatever it is that is refused."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import paceline_credentials
from benchmarks.attackers import ATTACKS, LARGE, Target
from paceline_core.launch import Role

from .conftest import eventually
from .inprocess import ID, launch

MOST_MIB = 64
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture(scope="module", params=["plain", "TLS"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Target]]:
    """The process of a parameter server, and what an attacker knows of it."""
    folder = tmp_path_factory.mktemp("credentials")
    paceline_credentials.write(folder, "test", ["ps-0"], 2)
    tls = {"tls": str(folder / "ps-0")} if request.param == "TLS" else {}
    with socket.create_server(("127.0.0.1", 0), backlog=512) as wire, socket.create_server(("127.0.0.1", 0)) as web:
        asked = launch(Role.SERVER, listen=f"fd:{wire.fileno()}", metrics=f"fd:{web.fileno()}", workers=2, **tls)
        process = subprocess.Popen(
            [sys.executable, "-m", "paceline.server"],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | asked.to_environment(),
            pass_fds=(wire.fileno(), web.fileno()),
        )
        address, metrics = (f"127.0.0.1:{s.getsockname()[1]}" for s in (wire, web))
    try:
        target = Target(address, metrics, bytes.fromhex(ID), str(folder / "worker-1") if tls else None)
        ATTACKS["HTTP /status"](target)  # it answers, so that all is loaded
        honest = target.store()  # without it worker 1 would be lost
        yield process.pid, target
        honest.close()
    finally:
        process.terminate()
        code = process.wait(timeout=30)
    assert code == 0


def mib(pid: int, field: str) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def attempts(name: str) -> int:
    """Twice as many as may be open at once, or more; three times that in `make sweep`."""
    many = 50 if name in LARGE else 500 if name == "HTTP idle" else 1500
    return many if "PACELINE_SWEEP" in os.environ else many // 3


@pytest.mark.sweep
@pytest.mark.parametrize("name", ATTACKS)
def test_a_server_grows_by_less_than_64_mib(server: tuple[int, Target], name: str) -> None:
    pid, target = server
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is counted from now on
    before = mib(pid, "VmRSS")
    for _ in range(attempts(name)):
        ATTACKS[name](target)
    grown = mib(pid, "VmHWM") - before
    target.close()
    print(f"{name}: {grown:.1f} MiB after {attempts(name)} attempts")
    assert grown < MOST_MIB
    eventually(lambda: len(os.listdir(f"/proc/{pid}/task")) < 50)
