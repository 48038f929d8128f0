"""Every HTTP request against every process: what `PATHS` lists is answered, and all else is refused and counted."""

import os
import socket
import time
from collections.abc import Iterator

import pytest

from paceline import http_pages, metrics
from paceline.http_pages import METHOD, PATHS, REQUEST_BYTES, Server, serve
from paceline_core.spec import Level

from .conftest import eventually
from .inprocess import Served, Trainee, equal, train
from .strangers import counted

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "PROPFIND", "X" * 100)
UNKNOWN = ("/", "", "*", "/metrics/", "/STATUS", "/status%00", "/../metrics", "/etc/passwd", "http://h/metrics")
HOSTS = ("127.0.0.1", "localhost:1", "example.org", "a.example.org:9, b", "\xff", "")


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    instruments = metrics.of_server("t", 0, Level.DETAILED)
    found = serve("127.0.0.1:0", instruments, {path: dict for path in PATHS if path != "/metrics"})
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def web(running: Server) -> Server:
    running._metrics.clear(metrics.PEERS_REJECTED)
    return running


def ask(web: Server | tuple[str, int], request: bytes) -> int:
    """The status of the answer; 0 when the connection is ended without one."""
    address = web if isinstance(web, tuple) else web.server_address[:2]
    with socket.create_connection(address, timeout=10) as connection:
        answer = b""
        try:
            connection.sendall(request)
            while part := connection.recv(1 << 16):
                answer += part
        except ConnectionError:
            pass  # it did not read to the end
    return int(answer.split()[1]) if answer else 0


def refused(web: Server) -> dict[str, float]:
    return counted(web._metrics)


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_in_the_table_is_answered(web: Server, method: str) -> None:
    expected: dict[str, float] = {}
    for path in (*PATHS, *UNKNOWN):
        code = 405 if method != METHOD else 200 if path in PATHS else 404
        code = code if path else 400 if method != METHOD else 404  # two words are a request of HTTP 0.9
        found = ask(web, f"{method} {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        assert found == code, path
        if code != 200:
            expected[f"http_{code}"] = expected.get(f"http_{code}", 0) + 1
    eventually(lambda: refused(web) == expected)


@pytest.mark.parametrize("host", HOSTS)
def test_the_host_is_not_looked_at(web: Server, host: str) -> None:
    """Nothing that is served is secret, and nothing can be changed: Prometheus, kubectl and names of Services all come."""
    assert ask(web, b"GET /status HTTP/1.1\r\nHost: " + host.encode("latin-1") + b"\r\n\r\n") == 200
    assert refused(web) == {}


REFUSED = {
    "a long path": (b"GET /" + b"a" * REQUEST_BYTES + b" HTTP/1.1\r\n\r\n", 431),
    "a line without end": (b"a" * (1 << 20), 431),
    "a long header": (b"GET /status HTTP/1.1\r\nA: " + b"a" * REQUEST_BYTES + b"\r\n\r\n", 431),
    "many headers": (b"GET /status HTTP/1.1\r\n" + b"A: a\r\n" * 1000 + b"\r\n", 431),
    "headers without end": (b"GET /status HTTP/1.1\r\n" + b"A: a\r\n" * 100_000, 431),
    "one word": (b"GET\r\n\r\n", 400),
    "bytes": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    "a frame": (b"PACE" + bytes(56) + b"\n\n", 400),
    "another protocol": (b"GET /status SMTP/1.1\r\n\r\n", 400),
    "a later HTTP": (b"GET /status HTTP/2.0\r\n\r\n", 505),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_request_is_refused(web: Server, name: str) -> None:
    request, code = REFUSED[name]
    assert ask(web, request) in (code, 0)  # an answer is lost where the client still sends
    eventually(lambda: refused(web) == {f"http_{code}": 1})
    assert ask(web, b"GET /status HTTP/1.1\r\n\r\n") == 200


def test_a_slow_request_ends(web: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_pages.PageRequest, "timeout", 0.1)
    assert ask(web, b"GET /status HTTP/1.1\r\nA:") == 0
    assert ask(web, b"") == 0
    eventually(lambda: refused(web) == {"http_slow": 2})


def test_idle_connections_give_way_to_a_request(web: Server) -> None:
    idle = [socket.create_connection(web.server_address[:2]) for _ in range(2 * http_pages.MOST_REQUESTS)]
    began = time.monotonic()
    assert ask(web, b"GET /status HTTP/1.1\r\n\r\n") == 200
    assert time.monotonic() - began < 3 * http_pages.REQUEST_SECONDS
    assert refused(web)["http_crowded"] > http_pages.MOST_REQUESTS
    for each in idle:
        each.close()


def test_an_expensive_page_is_made_for_a_tenth_of_the_time() -> None:
    made = []

    def page() -> dict[str, object]:
        made.append(time.sleep(0.02))
        return {}

    web = serve("127.0.0.1:0", metrics.of_server("t", 0, Level.DETAILED), {"/trace": page})
    began = time.monotonic()
    while time.monotonic() - began < 1:
        assert ask(web, b"GET /trace HTTP/1.1\r\n\r\n") == 200
    web.shutdown()
    web.server_close()
    assert 2 <= len(made) <= 6


def test_a_training_goes_on() -> None:
    plain = Served()
    expected = train(plain.address, 6)
    plain.stop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        served = Served(metrics=f"fd:{os.dup(listener.fileno())}")
    trainee = Trainee(served.address)
    for step in range(6):
        assert [ask(address, b"GET " + path.encode() + b" HTTP/1.1\r\n\r\n") for path in PATHS] == [200] * len(PATHS)
        for request, code in REFUSED.values():
            assert ask(address, request) in (code, 0)
        trainee.steps(range(step, step + 1))
    found = trainee.weights()
    eventually(lambda: sum(counted(served.service.metrics).values()) >= 6 * len(REFUSED))
    assert sum(counted(served.service.metrics).values()) == 6 * len(REFUSED)
    served.stop()
    assert served.error is None
    assert equal(found, expected)
