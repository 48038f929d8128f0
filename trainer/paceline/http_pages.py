"""What a process shows over HTTP: /metrics for Prometheus, and pages of JSON as /status. Read-only.

`PATHS` is all that there is. Whoever reaches the port may ask for it, by whatever name of the host: nothing of it is
secret, and nothing can be changed. Every other request ends its own connection, and a server counts it.
"""

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from paceline import json_text
from paceline.metrics import PEERS_REJECTED, Instruments
from paceline.wire.bounded_connections import BoundedConnections
from paceline.wire.endpoint import listen

Page = Callable[[], dict[str, Any]]
METHOD = "GET"
PATHS = {  # path -> its content type; a process serves those of them that it has
    "/metrics": CONTENT_TYPE_LATEST,
    "/trace": "application/json",
    "/status": "application/json",  # of shard 0 and the coordinator
}
MOST_REQUESTS, REQUEST_SECONDS = 64, 1.0  # at the same time; where there are more, the oldest give way after so long
REQUEST_BYTES = 16 << 10  # of the request line and all headers
SILENT_SECONDS = 10  # of a client
REST_FACTOR = 10  # an answer that took a second to make is given again for ten
log = logging.getLogger("paceline")


class Server(ThreadingHTTPServer):
    """One thread for each request; a client that goes away in the middle is no news."""

    daemon_threads = True

    def __init__(self, listener: socket.socket, pages: Mapping[str, Callable[[], bytes]], metrics: Instruments) -> None:
        super().__init__(("127.0.0.1", 0), PageRequest, bind_and_activate=False)
        self.socket.close()
        self.socket, self.server_address = listener, listener.getsockname()
        self.pages = {path: _Answer(make) for path, make in pages.items()}
        self._metrics = metrics
        self._open = BoundedConnections(MOST_REQUESTS, REQUEST_SECONDS, lambda: self.refused("crowded"))

    def refused(self, why: str) -> None:
        """Count a request that was not answered with a page."""
        self._metrics.add(PEERS_REJECTED, 1, f"http_{why}")

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own."""
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The request is over."""
        self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of what is not the client's doing."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class PageRequest(BaseHTTPRequestHandler):
    """One request, after which the connection ends."""

    server: Server
    timeout = SILENT_SECONDS
    default_request_version = "HTTP/1.0"  # of a line without one
    command, requestline, request_version = "", "", default_request_version  # until they are read

    def handle(self) -> None:
        """Read the request and answer it."""
        self.close_connection = True
        self.rfile: Any = _BoundedReader(self.rfile, REQUEST_BYTES)
        try:
            self.raw_requestline = self.rfile.readline()
            if self.raw_requestline and self.parse_request():
                self._answer(self.path.partition("?")[0])
        except _TooLongError:
            self.send_error(431)
        except TimeoutError:
            self.server.refused("slow")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse."""
        del message, explain  # they repeat what the client sent
        self.server.refused(str(int(code)))
        self._send(int(code), "text/plain", f"{METHOD} {' '.join(self.server.pages)}\n".encode())

    def log_message(self, *_: object) -> None:
        """Requests are not worth a line in the training's log."""

    def _answer(self, path: str) -> None:
        if self.command != METHOD:
            self.send_error(405)
        elif path not in self.server.pages:
            self.send_error(404)
        else:
            self._send(200, PATHS[path], self.server.pages[path].body())

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Answer:
    """A page as bytes: made for one request at a time, and for at most a tenth of the time."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make, self._body, self._until = make, b"", 0.0
        self._lock = threading.Lock()

    def body(self) -> bytes:
        """The page, as it is or was a moment ago."""
        with self._lock:
            began = time.monotonic()
            if began >= self._until:
                self._body = self._make()
                now = time.monotonic()
                self._until = now + REST_FACTOR * (now - began)
            return self._body


class _TooLongError(Exception):
    """A request of more bytes than are read."""


class _BoundedReader:
    """The lines of a request, as long as they are not too many bytes."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file, self._left = file, most

    def readline(self, most: int = -1) -> bytes:
        """A line. Raises _TooLongError."""
        line = self._file.readline(self._left + 1 if most < 0 else min(most, self._left + 1))
        self._left -= len(line)
        if self._left < 0:
            raise _TooLongError
        return line

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def serve(address: str, metrics: Instruments, pages: Mapping[str, Page]) -> Server:
    """Serve on `host:port`, or an inherited socket `fd:N`, in a thread of its own; `pages` by path."""
    made: dict[str, Callable[[], bytes]] = {"/metrics": lambda: generate_latest(metrics)}
    made |= {path: _json(page) for path, page in pages.items()}
    assert made.keys() <= PATHS.keys(), "a path that is not in the table"
    server = Server(listen(address), made, metrics)
    threading.Thread(target=_serve, args=(server,), name="web", daemon=True).start()
    return server


def _json(page: Page) -> Callable[[], bytes]:
    return lambda: json_text.dumps(page()).encode()


def _serve(server: Server) -> None:
    """Until it is shut down. Whatever else ends it is said, and the training goes on without pages."""
    try:
        server.serve_forever()
    except Exception as error:
        log.warning("metrics and status are not served any more: %r", error)
