"""The sockets of the REST interface: HTTP/1.1 with connections kept open."""

import contextlib
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mlet_tf.serving.local.rest import REASONS, Answer, Rest, html_error

_DRAIN_SECONDS = 5.0
_HEX = re.compile(rb"[0-9a-fA-F]+")


class RestServer:
    """Listens on a port, with a thread for each connection.

    Args:
        rest: what answers.
        host: the address to listen on.
        port: the port; 0 for a free one.
        max_request_bytes: the largest body taken.
    """

    def __init__(self, rest: Rest, host: str, port: int, max_request_bytes: int) -> None:
        self.busy = _Busy()
        handler = type("Handler", (_Handler,), {"rest": rest, "limit": max_request_bytes, "busy": self.busy})
        self._server = _Sockets((host, port), handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def stop(self, grace_seconds: float) -> None:
        """Takes no more connections, and waits for the requests under way."""
        self.busy.stopping = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.busy.wait(grace_seconds)


class _Busy:
    """Counts the requests under way."""

    def __init__(self) -> None:
        self.stopping = False
        self._count = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        with self._changed:
            self._count += 1
        try:
            yield
        finally:
            with self._changed:
                self._count -= 1
                self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._count == 0, max(0.0, end - time.monotonic()))


class _Sockets(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], handler: type) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores callers that went away."""


class _Handler(BaseHTTPRequestHandler):
    rest: Rest
    limit: int
    busy: _Busy
    _headers_buffer: list[bytes]
    protocol_version = "HTTP/1.1"
    server_version = "mlet-tf-stand-in"
    sys_version = ""
    disable_nagle_algorithm = True
    timeout = 300

    def __getattr__(self, name: str) -> Callable[[], None]:
        # One method answers all verbs that the real server's HTTP layer lets through.
        if name in ("do_GET", "do_POST", "do_HEAD", "do_PUT", "do_DELETE", "do_OPTIONS", "do_PATCH"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        with self.busy.one():
            try:
                body = self._body()
            except ValueError:
                self.send_error(400)
                return
            if body is None:
                self.send_error(413)
                self._drain()
                return
            origin = re.match("https?://", self.headers.get("Origin", "")) is not None
            # Not `self.path`, in which slashes at the beginning were made one.
            target = self.requestline.split()[1]
            self._send(self.rest.answer(self.command, target, body, has_origin=origin))

    def _drain(self) -> None:
        """Keeps reading for a while: a caller that is still sending when the connection closes misses the answer."""
        end = time.monotonic() + _DRAIN_SECONDS
        self.connection.settimeout(0.5)
        with contextlib.suppress(OSError):
            while self.rfile.read1(1 << 16) and time.monotonic() < end:
                pass

    def _body(self) -> bytes | None:
        """The body, unpacked; None if it is larger than allowed."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            body = self._chunks()
        else:
            length = self.headers.get("Content-Length", "0")
            size = int(length) if length.isdigit() else 0
            body = self.rfile.read(size) if size <= self.limit else None
        if body and "gzip" in self.headers.get("Content-Encoding", ""):
            body = self._unzip(body)
        return body

    def _unzip(self, body: bytes) -> bytes | None:
        unpack = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        try:
            plain = unpack.decompress(body, self.limit + 1)
        except zlib.error:
            return b""
        if len(plain) > self.limit:
            return None
        return plain if unpack.eof else b""

    def _chunks(self) -> bytes | None:
        parts: list[bytes] = []
        total = 0
        while True:
            size = self._chunk_size()
            total += size
            if total > self.limit:
                return None
            if size == 0:
                while self.rfile.readline(65536).strip():
                    pass
                return b"".join(parts)
            parts.append(self.rfile.read(size))
            if self.rfile.read(2) != b"\r\n":
                raise ValueError("a chunk is not as long as it says")

    def _chunk_size(self) -> int:
        text = self.rfile.readline(100).split(b";")[0].rstrip()
        if not _HEX.fullmatch(text):  # `int` takes a sign, a prefix and underscores as well.
            raise ValueError(f"not the size of a chunk: {text!r}")
        return int(text, 16)

    def _send(self, answer: Answer) -> None:
        if self.busy.stopping:
            self.close_connection = True
        self.send_response_only(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Date", self.date_time_string())
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self._headers_buffer.append(b"\r\n")
        # One write: two would wait for each other's acknowledgement.
        head = b"".join(self._headers_buffer)
        self._headers_buffer = []
        self.wfile.write(head if self.command == "HEAD" else head + answer.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The HTTP layer's own complaints."""
        self.close_connection = True
        self.request_version = "HTTP/1.1"
        self.command = self.command or "GET"
        self._send(html_error(code if code in REASONS else 400))

    def log_message(self, format: str, *args: object) -> None:
        """Does not log requests."""
