"""Where processes meet: addresses of both families, and connections whose other end has vanished."""

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request

import pytest

from paceline import metrics
from paceline.http_pages import serve
from paceline.server.membership.acceptor import Acceptor
from paceline.wire import endpoint
from paceline.wire.channel import Channel
from paceline.wire.frames import FrameKind, Header
from paceline_core.launch import Role
from paceline_core.spec import Level

from .inprocess import ID, launch

TRAINING = bytes.fromhex(ID)


def has(host: str) -> bool:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has("::1"), reason="needs IPv6 on the loopback interface")


@pytest.mark.parametrize(
    ("listen", "connect"),
    [
        ("127.0.0.1:0", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.1"),
        ("localhost:0", "localhost"),
        pytest.param("[::1]:0", "[::1]", marks=needs_ipv6),
        pytest.param("[::]:0", "[::1]", marks=needs_ipv6),
        ("[::]:0", "127.0.0.1"),
    ],
)
def test_both_families_reach_the_acceptor_and_the_metrics(listen: str, connect: str) -> None:
    made = metrics.of_server("t", 0, Level.DETAILED)
    acceptor = Acceptor(launch(Role.SERVER, listen=listen), {"store": answer}, made)
    acceptor.open()
    port = acceptor.address.rpartition(":")[2]
    channel = endpoint.connect(f"{connect}:{port}", TRAINING, "ps-0", None, 0, 10)
    assert channel.introduce(Header(FrameKind.HELLO, TRAINING), {"role": "worker", "channel": "store"}) == {
        "welcome": True
    }
    channel.close()
    acceptor.close()

    web = serve(listen, made, {"/status": lambda: {"here": True}})
    with urllib.request.urlopen(f"http://{connect}:{web.server_address[1]}/status", timeout=10) as page:
        assert json.load(page) == {"here": True}
    web.shutdown()
    web.server_close()


def answer(channel: Channel, hello: Header, asked: dict[str, object]) -> None:
    channel.send_json(Header(FrameKind.READY, channel.training), {"welcome": True})


@pytest.mark.parametrize("listen", ["127.0.0.1:0", pytest.param("[::1]:0", marks=needs_ipv6)])
def test_an_acceptor_tells_an_address_that_can_be_reached(listen: str) -> None:
    acceptor = Acceptor(launch(Role.SERVER, listen=listen), {}, metrics.of_server("t", 0, Level.DETAILED))
    endpoint.connect(acceptor.address, TRAINING, "ps-0", None, 0, 10).close()
    acceptor.close()


def test_all_addresses_are_those_of_ipv4_on_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with endpoint.listen("[::]:0") as listener:
        assert listener.family == socket.AF_INET
        socket.create_connection(("127.0.0.1", listener.getsockname()[1])).close()


VANISHED = """
import socket, subprocess
from paceline.wire import channel
from paceline_core.errors import PeerLost

def loopback(state):
    subprocess.run(["ip", "link", "set", "lo", state], check=True)

loopback("up")
channel.KEEP_IDLE_SECONDS = channel.KEEP_INTERVAL_SECONDS = 1
with socket.create_server(("127.0.0.1", 0)) as listener:
    other = socket.create_connection(listener.getsockname())
    connection, _ = listener.accept()
ours = channel.Channel(connection, bytes(16), "worker-1", timeout=20)
loopback("down")
try:
    ours.header(idle=True)
except PeerLost as error:
    print(error, "|", isinstance(error.__cause__, TimeoutError))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs a network namespace, and so root")
def test_an_idle_wait_ends_when_the_other_machine_is_gone() -> None:
    """A connection is made anew when it broke, but not when the peer let it wait for too long."""
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", VANISHED], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "the connection to worker-1 broke: [Errno 110] Connection timed out | False\n", done.stderr


def test_a_silent_connection_is_probed_after_seconds_not_hours() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        channel = Channel(socket.create_connection(listener.getsockname()), TRAINING, "ps-0", 10)
        assert channel.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
        channel.close()
