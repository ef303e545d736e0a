"""The REST interface of the stand-in server."""

import contextlib
import logging
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote_to_bytes

from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    model_pb2,
    regression_pb2,
)

from mlet_tf.serving.local import json_tensor
from mlet_tf.serving.local.models import Models
from mlet_tf.serving.local.proto_json import to_json
from mlet_tf.serving.local.status import Code, StatusError, invalid

_DRAIN_SECONDS = 5.0
_log = logging.getLogger(__name__)
_JSON = "application/json"
_HTML = "text/html"
_BARE = "text/html; charset=ISO-8859-1"
_VERSION = r"(?:(?:/versions/(?P<version>\d+))|(?:/labels/(?P<label>[^/:]+)))?"
_POST = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)", re.ASCII | re.IGNORECASE
)
_GET = re.compile(
    rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?:/(?P<method>metadata))?", re.ASCII | re.IGNORECASE
)
_HEX = re.compile(rb"[0-9a-fA-F]+")
_HTTP_STATUS = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}
_REASONS = {400: "Bad Request", 404: "Not Found", 413: "Request Entity Too Large", 501: "Not Implemented"}


@dataclass(frozen=True)
class Answer:
    """What goes back to the caller."""

    status: int
    body: bytes
    content_type: str


class Rest:
    """Answers REST requests; no sockets here.

    Args:
        models: what to ask.
    """

    def __init__(self, models: Models) -> None:
        """See the class."""
        self._models = models

    def answer(self, method: str, path: str, body: bytes, *, has_origin: bool = False) -> Answer:
        """The answer to one request."""
        if not re.fullmatch(r"/v1/.*", path, re.IGNORECASE | re.DOTALL):
            return html_error(404)
        if method == "OPTIONS":
            return Answer(200 if has_origin else 400, b"", _BARE)
        try:
            text = self._json(method, path, body)
            return Answer(200, text.encode("utf-8", "surrogateescape"), _JSON)
        except _VersionOverflowError:
            return Answer(400, b"", _JSON)
        except StatusError as error:
            return _refusal(error)
        except Exception as error:  # A fault of this server must not cost the caller the connection.
            _log.exception("%s %s failed", method, path)
            return _refusal(StatusError(Code.INTERNAL, f"{type(error).__name__}: {error}"))

    def _json(self, method: str, path: str, body: bytes) -> str:
        pattern = {"POST": _POST, "GET": _GET}.get(method)
        match = pattern.fullmatch(path) if pattern else None
        if match is None:
            raise invalid(f"Malformed request: {method} {path}")
        spec = _model_spec(match)
        verb = match["method"]
        if method == "GET":
            if not spec.name:
                raise invalid("Missing model name in request.")
            return self._metadata(spec) if verb == "metadata" else to_json(self._models.status(spec))
        verbs = {"predict": self._predict, "classify": self._classify, "regress": self._regress}
        if verb not in verbs:
            raise invalid(f"Malformed request: {method} {path}")
        return verbs[verb](spec, body)

    def _predict(self, spec: model_pb2.ModelSpec, body: bytes) -> str:
        with contextlib.ExitStack() as stack:
            held: list[Any] = []

            def input_types(name: str) -> dict[str, int]:
                held.append(stack.enter_context(self._models.use(spec)))
                return held[0].input_types(name)

            request = json_tensor.predict_body(body, input_types)
            outputs = held[0].predict(request.signature_name, request.inputs)
            return json_tensor.predict_answer(outputs, by_row=request.by_row)

    def _classify(self, spec: model_pb2.ModelSpec, body: bytes) -> str:
        spec.signature_name, examples = json_tensor.examples_body(body)
        with self._models.use(spec) as servable:
            request = classification_pb2.ClassificationRequest(model_spec=spec, input=examples)
            return json_tensor.classify_answer(servable.classify(request).result)

    def _regress(self, spec: model_pb2.ModelSpec, body: bytes) -> str:
        spec.signature_name, examples = json_tensor.examples_body(body)
        with self._models.use(spec) as servable:
            request = regression_pb2.RegressionRequest(model_spec=spec, input=examples)
            return json_tensor.regress_answer(servable.regress(request).result)

    def _metadata(self, spec: model_pb2.ModelSpec) -> str:
        with self._models.use(spec) as servable:
            found = model_pb2.ModelSpec(name=servable.name)
            found.version.value = servable.version
            signatures = get_model_metadata_pb2.SignatureDefMap()
            for name, signature in servable.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
        return (
            f'{{\n"model_spec":{to_json(found, proto_names=True)},\n'
            f'"metadata": {{"signature_def": {to_json(signatures, proto_names=True)}}}\n}}\n'
        )


def _refusal(error: StatusError) -> Answer:
    text = json_tensor.error_answer(error.message)
    return Answer(_HTTP_STATUS.get(error.code, 500), text.encode("utf-8", "surrogateescape"), _JSON)


class _VersionOverflowError(Exception):
    """The version is no 64-bit integer; the real server sends 400 and no words."""


def _model_spec(match: re.Match) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=_unquote(match["name"] or ""))
    if match["version"]:
        number = int(match["version"])
        if number >= 2**63:
            raise _VersionOverflowError
        spec.version.value = number
    if match["label"]:
        spec.version_label = _unquote(match["label"])
    return spec


def _unquote(text: str) -> str:
    return unquote_to_bytes(text.encode("latin-1", "replace")).decode("utf-8", "replace")


def html_error(status: int) -> Answer:
    """The page that the HTTP layer itself answers with."""
    reason = _REASONS.get(status, "Error")
    page = (
        f"<HTML><HEAD>\n<TITLE>{status} {reason}</TITLE>\n</HEAD><BODY>\n<H1>{reason}</H1>\n</BODY></HTML>\n"
    )
    return Answer(status, page.encode(), _HTML)


class RestServer:
    """The sockets: HTTP/1.1 with connections kept open, one thread each.

    Args:
        rest: what answers.
        host: the address to listen on.
        port: the port; 0 for a free one.
        max_request_bytes: the largest body taken.
    """

    def __init__(self, rest: Rest, host: str, port: int, max_request_bytes: int) -> None:
        """Binds the port and starts to listen."""
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

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    rest: Rest
    limit: int
    busy: _Busy
    protocol_version = "HTTP/1.1"
    server_version = "mlet-tf-stand-in"
    sys_version = ""
    disable_nagle_algorithm = True
    timeout = 300

    def __getattr__(self, name: str) -> Any:
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
            self._send(self.rest.answer(self.command, self._path(), body, has_origin=origin))

    def _drain(self) -> None:
        """Reads on for a while: a caller that still sends when the connection closes misses the answer."""
        end = time.monotonic() + _DRAIN_SECONDS
        self.connection.settimeout(0.5)
        with contextlib.suppress(OSError):
            while self.rfile.read1(1 << 16) and time.monotonic() < end:
                pass

    def _path(self) -> str:
        absolute = re.match(r"https?://[^/]*(/.*)?$", self.path, re.IGNORECASE)
        return (absolute[1] or "/") if absolute else self.path

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
        parts, total = [], 0
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
        self._send(html_error(code if code in _REASONS else 400))

    def log_message(self, format: str, *args: Any) -> None:
        """No line for each request."""
