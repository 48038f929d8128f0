"""What a process shows over HTTP: /metrics for Prometheus and, where there is one, /status as JSON. Read-only."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from paceline.wire.endpoint import listen

Status = Callable[[], dict[str, Any]]


def serve(address: str, registry: CollectorRegistry, status: Status | None = None) -> ThreadingHTTPServer:
    """Serve on `host:port`, or an inherited socket `fd:N`, in a thread of its own."""

    class Pages(BaseHTTPRequestHandler):
        timeout = 10  # seconds, for a client that sends nothing

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif path == "/status" and status is not None:
                self._answer(200, "application/json", json.dumps(status()).encode())
            else:
                self._answer(404, "text/plain", b"/metrics or /status\n")

        def _answer(self, code: int, kind: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass  # requests are not worth a line in the training's log

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages, bind_and_activate=False)
    server.daemon_threads = True
    server.socket.close()
    server.socket = listen(address)
    server.server_address = server.socket.getsockname()
    threading.Thread(target=server.serve_forever, name="web", daemon=True).start()
    return server
