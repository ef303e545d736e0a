"""How requests travel: gRPC, REST, and gRPC for asyncio. Nothing here is sent twice; the client decides that."""

import asyncio
import base64
import contextlib
import http.client
import io
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from mlet_tf.errors import InputError

if TYPE_CHECKING:
    import grpc

_HTTP_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_OUTPUT = "ctr"
_MAX_CONNECTIONS = 64
_SHOWN = 200

# By signature, `inputs` and `outputs`: type and shape by name; None stands for a shape of any rank.
Metadata = dict[str, dict[str, dict[str, tuple[str, list[int] | None]]]]


class ServingError(RuntimeError):
    """The server refused, or could not be reached.

    Attributes:
        code: A gRPC code's name such as `"INVALID_ARGUMENT"`; for REST derived from the HTTP status.
        details: The server's words.
        row: Index of the row at fault, where it could be told.
    """

    def __init__(self, code: str, details: str, *, row: int | None = None, shown: str = "") -> None:
        """See the class; `shown` is the row itself."""
        at = f"row {row}: " if row is not None else ""
        super().__init__(f"{at}{code}: {details}" + (f" (the row: {shown})" if shown else ""))
        self.code = code
        self.details = details
        self.row = row


@dataclass(frozen=True)
class Tls:
    """How to reach a server over TLS.

    Attributes:
        ca: PEM file of the authorities to trust; None for the system's.
        certificate: PEM file of the client's certificate, where the server asks for one.
        key: PEM file of its private key.
        server_name: The name that the server's certificate is for, where it is not the target's.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None


@dataclass(frozen=True)
class Settings:
    """Where requests go and what they say beside the rows. The fields are those of `CTRClient`."""

    target: str
    model_name: str
    signature: str
    input_name: str
    version: int | None
    label: str | None
    tls: Tls | None
    token: str | Callable[[], str] | None

    def headers(self) -> dict[str, str]:
        """What goes with each request.

        Raises:
            InputError: The token cannot be sent, such as one with a line end.
        """
        if self.token is None:
            return {}
        token = self.token() if callable(self.token) else self.token
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise InputError("token: expected printable ASCII characters. Received: others beside them")
        return {"authorization": f"Bearer {token}"}


@dataclass(frozen=True)
class Request:
    """One message to the server.

    Attributes:
        kind: `"predict"`, `"status"` or `"metadata"`.
        deadline: `time.monotonic()` until when to wait.
        examples: What to predict.
        version: The version to ask, where it is not the settings'.
    """

    kind: str
    deadline: float
    examples: Sequence[bytes] = ()
    version: int | None = None

    def seconds(self) -> float:
        """How long is left.

        Raises:
            ServingError: Nothing is.
        """
        return _seconds_until(self.deadline)


def _seconds_until(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise ServingError("DEADLINE_EXCEEDED", "the time for the request is over")
    return left


def _chosen(outputs: Mapping[str, Any]) -> Any:
    """The output with the CTRs: the only one, or the one of that name."""
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    if _OUTPUT not in outputs:
        raise ServingError("INTERNAL", f"expected an output named {_OUTPUT!r}, received {sorted(outputs)}")
    return outputs[_OUTPUT]


@contextlib.contextmanager
def _reading(answer: Any) -> Iterator[None]:
    """Whatever fails inside does so because the answer is none of a model server's."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        shown = (
            answer[:_SHOWN].decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)[:_SHOWN]
        )
        raise ServingError("INTERNAL", f"expected a model server's answer, received {shown!r}") from error


def _type_name(name: str) -> str:
    return name.removeprefix("DT_").lower()


# --- REST -------------------------------------------------------------------------------------------------


class RestTransport:
    """HTTP/1.1 over kept connections, shared by all threads.

    Args:
        settings: Where to.
    """

    def __init__(self, settings: Settings) -> None:
        """See the class."""
        self._settings = settings
        self._host, _, prefix = settings.target.partition("/")
        self._prefix = f"/{prefix}" if prefix else ""
        self._context = _ssl_context(settings.tls) if settings.tls else None
        self._pool = _Pool(self._new_connection, _MAX_CONNECTIONS)

    def send(self, request: Request) -> Any:
        """Sends a request; the answer is an array, a dict of states or the metadata.

        Raises:
            ServingError: The server refused, cannot be reached, or answers what no model server does.
        """
        model = f"/v1/models/{quote(self._settings.model_name, safe='')}"
        if request.kind == "status":
            return self._exchange(request, _states_of_json, "GET", model)
        model += self._version_path(request.version)
        if request.kind == "metadata":
            return self._exchange(request, _metadata_of_json, "GET", f"{model}/metadata")
        examples = [{"b64": base64.b64encode(example).decode()} for example in request.examples]
        body = {
            "signature_name": self._settings.signature,
            "inputs": {self._settings.input_name: examples},
        }
        return self._exchange(request, _values_of_json, "POST", f"{model}:predict", json.dumps(body).encode())

    def close(self) -> None:
        """Closes the connections; one that is in use, after its answer."""
        self._pool.close()

    def _version_path(self, version: int | None) -> str:
        version = self._settings.version if version is None else version
        if version is not None:
            return f"/versions/{version}"
        return f"/labels/{quote(self._settings.label, safe='')}" if self._settings.label else ""

    def _exchange(
        self,
        request: Request,
        read: Callable[[Any], Any],
        method: str,
        path: str,
        body: bytes | None = None,
    ) -> Any:
        status, text = self._roundtrip(request, method, self._prefix + path, body)
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if status == 200:
            with _reading(text):
                return read(answer)
        words = answer.get("error") if isinstance(answer, dict) else None
        details = str(words) if words else f"HTTP status {status}: {text[:_SHOWN].decode('utf-8', 'replace')}"
        raise ServingError(_HTTP_CODES.get(status, "UNKNOWN"), details)

    def _roundtrip(self, request: Request, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", **self._settings.headers()}
        with self._pool.lend(request.deadline) as connection:
            while True:
                kept = connection.sock is not None
                try:
                    connection.request(method, path, body, headers)
                    response = connection.getresponse()
                    return response.status, response.read()
                except TimeoutError as error:
                    raise ServingError("DEADLINE_EXCEEDED", f"no answer from {self._host} in time") from error
                except (OSError, UnicodeError, http.client.HTTPException) as error:
                    connection.close()
                    # A server may close a connection that was idle; that tells nothing about the server.
                    if not kept:
                        raise ServingError(
                            "UNAVAILABLE", f"{self._host}: {error or type(error).__name__}"
                        ) from error

    def _new_connection(self) -> "_Connection":
        return _Connection(self._host, self._context, self._settings.tls and self._settings.tls.server_name)


class _Pool:
    """Connections that are lent to one request at a time, the one that was used last first.

    Args:
        make: Makes a connection.
        size: How many there may be; beyond them, requests wait for one.
    """

    def __init__(self, make: Callable[[], "_Connection"], size: int) -> None:
        self._make = make
        self._size = size
        self._free = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._closed = False

    @contextlib.contextmanager
    def lend(self, deadline: float) -> "Iterator[_Connection]":
        """A connection on which all steps end by the deadline.

        Raises:
            ServingError: None became free in time.
        """
        if not self._free.acquire(timeout=_seconds_until(deadline)):
            raise ServingError("DEADLINE_EXCEEDED", f"all {self._size} connections were in use")
        try:
            with self._lock:
                connection = self._idle.pop() if self._idle else self._make()
            connection.deadline = deadline
            try:
                yield connection
            except BaseException:
                # The rest of an answer may still be to come: it must not be taken for the next one.
                connection.close()
                raise
            finally:
                self._take_back(connection)
        finally:
            self._free.release()

    def close(self) -> None:
        """Closes the idle connections now, and the others when they come back."""
        with self._lock:
            self._closed = True
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def _take_back(self, connection: "_Connection") -> None:
        with self._lock:
            if self._closed:
                connection.close()
            elif connection.sock is not None:
                self._idle.append(connection)


class _Connection(http.client.HTTPConnection):
    """HTTP or HTTPS, where a deadline bounds all steps together and not each of them.

    Args:
        host: Host and port.
        context: Settings of TLS; None for none.
        server_name: The name that the server's certificate is for, where it is not the host's.
    """

    def __init__(self, host: str, context: ssl.SSLContext | None, server_name: str | None) -> None:
        self.default_port = 443 if context else 80
        super().__init__(host)
        self.deadline = 0.0
        self._context = context
        self._server_name = server_name

    def connect(self) -> None:
        """Connects to the first of the host's addresses that answers."""
        self.sock = self._reach()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is not None:
            self.sock.settimeout(_seconds_until(self.deadline))
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self._server_name or self.host)

    def send(self, data: bytes) -> None:
        """Sends bytes, of the head or of the body."""
        if self.sock is None:
            self.connect()
        left = memoryview(data)
        while left:
            self.sock.settimeout(_seconds_until(self.deadline))
            left = left[self.sock.send(left) :]

    def response_class(self, sock: socket.socket, **options: Any) -> http.client.HTTPResponse:
        """The answer, read within the deadline."""
        response = http.client.HTTPResponse(sock, **options)
        response.fp = io.BufferedReader(_TimedReader(response.fp.detach(), sock, self.deadline))
        return response

    def _reach(self) -> socket.socket:
        failure = OSError(f"{self.host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM
        ):
            seconds = _seconds_until(self.deadline)
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(seconds)
                made.connect(address)
                return made
            except OSError as error:
                made.close()
                failure = error
        raise failure


class _TimedReader(io.RawIOBase):
    """What comes from a socket until a deadline."""

    def __init__(self, stream: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._stream = stream
        self._socket = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(_seconds_until(self._deadline))
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()


def _ssl_context(tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        raise InputError(f"tls: cannot read {tls.ca or tls.certificate} ({error})") from error
    return context


def _states_of_json(answer: Mapping[str, Any]) -> dict[int, str]:
    return {int(version["version"]): version["state"] for version in answer["model_version_status"]}


def _values_of_json(answer: Mapping[str, Any]) -> np.ndarray:
    outputs = answer["outputs"]
    values = np.array(_chosen(outputs) if isinstance(outputs, dict) else outputs)
    # NumPy would make NaN of null and a number of a text.
    if values.dtype.kind not in "fiu":
        raise ValueError
    return values.astype(np.float32)


def _metadata_of_json(answer: Mapping[str, Any]) -> Metadata:
    def tensors(infos: Mapping[str, Any]) -> dict[str, tuple[str, list[int] | None]]:
        found = {}
        for name, info in infos.items():
            shape = info["tensor_shape"]
            dims = None if shape["unknown_rank"] else [int(dim["size"]) for dim in shape["dim"]]
            found[name] = (_type_name(info["dtype"]), dims)
        return found

    signatures = answer["metadata"]["signature_def"]["signature_def"]
    return {
        name: {side: tensors(signature[side]) for side in ("inputs", "outputs")}
        for name, signature in signatures.items()
    }


class AsyncRestTransport:
    """REST for asyncio, each request in a thread.

    Args:
        settings: Where to.
    """

    def __init__(self, settings: Settings) -> None:
        """See the class."""
        self._transport = RestTransport(settings)

    async def send(self, request: Request) -> Any:
        """See `RestTransport.send`."""
        return await asyncio.to_thread(self._transport.send, request)

    async def close(self) -> None:
        """Closes all connections."""
        self._transport.close()


# --- gRPC -------------------------------------------------------------------------------------------------


class _GrpcBase:
    """Messages of the TensorFlow Serving API."""

    def __init__(self, settings: Settings, library: Any) -> None:
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        self._settings = settings
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            # A server that comes back is found within a second; the client bounds the retries.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if settings.tls and settings.tls.server_name:
            options.append(("grpc.ssl_target_name_override", settings.tls.server_name))
        if settings.tls:
            self._channel = library.secure_channel(
                settings.target, _channel_credentials(settings.tls), options
            )
        else:
            self._channel = library.insecure_channel(settings.target, options)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def _call(self, request: Request) -> Any:
        """Starts the call: the answer itself, or for asyncio what to await."""
        method, message = {
            "predict": self._predict_message,
            "status": self._status_message,
            "metadata": self._metadata_message,
        }[request.kind](request)
        return method(message, timeout=request.seconds(), metadata=tuple(self._settings.headers().items()))

    def _predict_message(self, request: Request) -> tuple[Any, Any]:
        from tensorflow.core.framework import types_pb2
        from tensorflow_serving.apis import predict_pb2

        message = predict_pb2.PredictRequest()
        self._fill_spec(message.model_spec, request.version)
        message.model_spec.signature_name = self._settings.signature
        tensor = message.inputs[self._settings.input_name]
        tensor.dtype = types_pb2.DT_STRING
        tensor.tensor_shape.dim.add(size=len(request.examples))
        tensor.string_val.extend(request.examples)
        return self._prediction.Predict, message

    def _status_message(self, _: Request) -> tuple[Any, Any]:
        from tensorflow_serving.apis import get_model_status_pb2

        message = get_model_status_pb2.GetModelStatusRequest()
        message.model_spec.name = self._settings.model_name
        return self._model.GetModelStatus, message

    def _metadata_message(self, request: Request) -> tuple[Any, Any]:
        from tensorflow_serving.apis import get_model_metadata_pb2

        message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._fill_spec(message.model_spec, request.version)
        return self._prediction.GetModelMetadata, message

    def _fill_spec(self, spec: Any, version: int | None) -> None:
        spec.name = self._settings.model_name
        version = self._settings.version if version is None else version
        if version is not None:
            spec.version.value = version
        elif self._settings.label:
            spec.version_label = self._settings.label


def _channel_credentials(tls: Tls) -> "grpc.ChannelCredentials":
    import grpc

    try:
        ca, key, certificate = (
            Path(path).read_bytes() if path else None for path in (tls.ca, tls.key, tls.certificate)
        )
    except OSError as error:
        raise InputError(f"tls: cannot read {error.filename} ({error.strerror})") from error
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _answer(request: Request, message: Any) -> Any:
    with _reading(message):
        if request.kind == "predict":
            return _values_of_message(message)
        if request.kind == "metadata":
            return _metadata_of_message(message)
        states = type(message).DESCRIPTOR.fields_by_name["model_version_status"].message_type
        names = states.fields_by_name["state"].enum_type.values_by_number
        return {found.version: names[found.state].name for found in message.model_version_status}


def _values_of_message(message: Any) -> np.ndarray:
    from tensorflow.core.framework import types_pb2

    proto = _chosen(message.outputs)
    if proto.dtype != types_pb2.DT_FLOAT:
        raise ValueError
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, np.float32)
    return np.array(proto.float_val, np.float32)


def _metadata_of_message(message: Any) -> Metadata:
    from tensorflow.core.framework import types_pb2
    from tensorflow_serving.apis import get_model_metadata_pb2

    def tensors(infos: Mapping[str, Any]) -> dict[str, tuple[str, list[int] | None]]:
        found = {}
        for name, info in infos.items():
            shape = info.tensor_shape
            dims = None if shape.unknown_rank else [dim.size for dim in shape.dim]
            found[name] = (_type_name(types_pb2.DataType.Name(info.dtype)), dims)
        return found

    signatures = get_model_metadata_pb2.SignatureDefMap()
    message.metadata["signature_def"].Unpack(signatures)
    return {
        name: {"inputs": tensors(signature.inputs), "outputs": tensors(signature.outputs)}
        for name, signature in signatures.signature_def.items()
    }


def _failure(error: "grpc.RpcError") -> ServingError:
    return ServingError(error.code().name, error.details() or "no details")


class GrpcTransport(_GrpcBase):
    """gRPC over one channel.

    Args:
        settings: Where to.
    """

    def __init__(self, settings: Settings) -> None:
        """See the class."""
        import grpc

        super().__init__(settings, grpc)
        self._error = grpc.RpcError

    def send(self, request: Request) -> Any:
        """See `RestTransport.send`."""
        try:
            return _answer(request, self._call(request))
        except self._error as error:
            raise _failure(error) from None

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()


class AsyncGrpcTransport(_GrpcBase):
    """gRPC over one channel of `grpc.aio`.

    Args:
        settings: Where to.
    """

    def __init__(self, settings: Settings) -> None:
        """See the class."""
        import grpc.aio

        super().__init__(settings, grpc.aio)
        self._error = grpc.RpcError

    async def send(self, request: Request) -> Any:
        """See `RestTransport.send`."""
        try:
            return _answer(request, await self._call(request))
        except self._error as error:
            raise _failure(error) from None

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()
