"""A real S3 server on this machine, and a proxy before it that goes wrong where a test says."""

import http.client
import itertools
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PROGRAM = Path(os.environ.get("PACELINE_CLUSTER", Path.home() / ".cache/paceline-cluster"), "bin", "versitygw")
NONE_HERE = f"there is no S3 server at {PROGRAM}: `make tools` compiles it (needs Go)"
ACCESS, SECRET = "paceline", "of-this-test"
NUMBERS = itertools.count()
OWN_HEADERS = ("connection", "transfer-encoding", "content-length", "date", "server")
Hook = Callable[[int, str, str], int | None]


@dataclass(frozen=True)
class S3Server:
    """Its buckets are folders in `folder`, and its objects files in them."""

    folder: Path
    endpoint: str

    def bucket(self) -> str:
        """A new bucket's name: the library keeps what it knows of one."""
        name = f"bucket-{next(NUMBERS)}"
        (self.folder / name).mkdir()
        return name

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }


def certificate(folder: Path) -> Path:
    """A certificate of 127.0.0.1 that only itself vouches for, with its key beside it in key.pem."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "s3")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    plain, pem = serialization.NoEncryption(), serialization.Encoding.PEM
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    return folder / "cert.pem"


@contextmanager
def running(root: Path, cert: Path | None = None) -> Iterator[S3Server]:
    """A server with what it keeps in `root`; with a certificate it speaks TLS."""
    data, about = root / "objects", root / "about"
    data.mkdir()
    about.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tls = ["--cert", str(cert), "--key", str(cert.with_name("key.pem"))] if cert else []
    own = ["posix", "--sidecar", str(about), str(data)]
    asked = [str(PROGRAM), "--port", f"127.0.0.1:{port}", "--quiet", *tls, *own]
    told = os.environ | {"ROOT_ACCESS_KEY": ACCESS, "ROOT_SECRET_KEY": SECRET}
    with (root / "log").open("wb") as log, subprocess.Popen(asked, env=told, stdout=log, stderr=log) as process:
        try:
            while not answers(port):
                assert process.poll() is None, (root / "log").read_text()
            yield S3Server(data, f"http{'s' if cert else ''}://127.0.0.1:{port}")
        finally:
            process.terminate()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


class Proxy:
    """Passes requests on. `before` and `after` are given each one's number, method and path, before it is passed on and
    when it was carried out; they give the code of an answer in place of the server's, or None."""

    def __init__(
        self,
        target: str,
        before: Hook = lambda *_: None,
        after: Hook = lambda *_: None,
    ) -> None:
        self.target, self.before, self.after = target.removeprefix("http://"), before, after
        self.seen: list[str] = []
        self._numbers = itertools.count()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                proxy.pass_on(self)

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def pass_on(self, it: BaseHTTPRequestHandler) -> None:
        number = next(self._numbers)
        self.seen.append(f"{it.command} {it.path}")
        body = it.rfile.read(int(it.headers.get("Content-Length", 0)))
        if (code := self.before(number, it.command, it.path)) is not None:
            self.answer(it, code, {}, b"")
            return
        connection = http.client.HTTPConnection(self.target, timeout=30)
        try:
            connection.putrequest(it.command, it.path, skip_host=True, skip_accept_encoding=True)
            for name, value in it.headers.items():  # as they are: they are signed
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        code = self.after(number, it.command, it.path)
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in OWN_HEADERS}
        length = answer.getheader("Content-Length") if it.command == "HEAD" else None
        self.answer(it, code or answer.status, kept, b"" if code else data, length)

    def answer(
        self, it: BaseHTTPRequestHandler, code: int, headers: Mapping[str, str], data: bytes, length: str | None = None
    ) -> None:
        try:
            it.send_response(code)
            for name, value in headers.items():
                it.send_header(name, value)
            it.send_header("Content-Length", length or str(len(data)))
            it.end_headers()
            it.wfile.write(data)
        except OSError:
            it.close_connection = True  # who asked is gone

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
