"""A server when there are more connections than it can hold."""

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from paceline_core.launch import Role

from .conftest import eventually
from .test_ring import launch

SOFT, HARD = 40, 64  # open files of the server


@pytest.fixture
def server() -> "Iterator[tuple[subprocess.Popen[bytes], int]]":
    """A coordinator that may open few files, and its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        asked = launch(Role.COORDINATOR, listen=f"fd:{listener.fileno()}").to_environment()
        command = shlex.join([sys.executable, "-m", "paceline.server"])
        process = subprocess.Popen(
            ["sh", "-c", f"ulimit -Sn {SOFT} && ulimit -Hn {HARD} && exec {command}"],
            env=os.environ | asked,
            pass_fds=(listener.fileno(),),
        )
        port = listener.getsockname()[1]
    yield process, port
    process.terminate()
    assert process.wait(timeout=30) == 0


def answers(port: int) -> bool:
    """Whether the server reads what comes, and closes the connection because it makes no sense."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"x" * 60)
        try:
            return connection.recv(1) == b""
        except ConnectionResetError:
            return True


def test_connections_are_accepted_again_when_there_were_too_many(server: "tuple[subprocess.Popen[bytes], int]") -> None:
    process, port = server
    assert answers(port)
    with ExitStack() as stack:
        for _ in range(2 * HARD):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        eventually(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) == HARD)
    assert answers(port)
