"""What a process shows over HTTP: /metrics for Prometheus, and pages of JSON as /status. Read-only."""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from paceline.metrics import Instruments
from paceline.wire.endpoint import listen

Page = Callable[[], dict[str, Any]]


class Server(ThreadingHTTPServer):
    """One thread for each request; a client that goes away in the middle is no news."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of what is not the client's doing."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def serve(address: str, metrics: Instruments, pages: Mapping[str, Page]) -> ThreadingHTTPServer:
    """Serve on `host:port`, or an inherited socket `fd:N`, in a thread of its own; `pages` by path."""

    class Pages(BaseHTTPRequestHandler):
        timeout = 10  # seconds, for a client that sends nothing

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(metrics))
            elif path in pages:
                self._answer(200, "application/json", json.dumps(pages[path]()).encode())
            else:
                self._answer(404, "text/plain", f"{' '.join(['/metrics', *pages])}\n".encode())

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass  # requests are not worth a line in the training's log

    server = Server(("127.0.0.1", 0), Pages, bind_and_activate=False)
    server.socket.close()
    server.socket = listen(address)
    server.server_address = server.socket.getsockname()
    threading.Thread(target=server.serve_forever, name="web", daemon=True).start()
    return server
