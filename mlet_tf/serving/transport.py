"""How requests travel: gRPC, REST, and gRPC for asyncio. Nothing here is sent twice; the client decides that."""

import asyncio
import base64
import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
        """What goes with each request."""
        if self.token is None:
            return {}
        return {"authorization": f"Bearer {self.token() if callable(self.token) else self.token}"}


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
        left = self.deadline - time.monotonic()
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


def _type_name(name: str) -> str:
    return name.removeprefix("DT_").lower()


# --- REST -------------------------------------------------------------------------------------------------


class RestTransport:
    """HTTP/1.1, one kept connection for each thread.

    Args:
        settings: Where to.
    """

    def __init__(self, settings: Settings) -> None:
        """See the class."""
        self._settings = settings
        self._host, _, prefix = settings.target.partition("/")
        self._prefix = f"/{prefix}" if prefix else ""
        self._context = _ssl_context(settings.tls) if settings.tls else None
        self._local = threading.local()
        self._open: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def send(self, request: Request) -> Any:
        """Sends a request; the answer is an array, a dict of states or the metadata.

        Raises:
            ServingError: The server refused, or cannot be reached.
        """
        model = f"/v1/models/{quote(self._settings.model_name, safe='')}"
        if request.kind == "status":
            found = self._exchange(request, "GET", model)["model_version_status"]
            return {int(version["version"]): version["state"] for version in found}
        model += self._version_path(request.version)
        if request.kind == "metadata":
            return _metadata_of_json(self._exchange(request, "GET", f"{model}/metadata"))
        examples = [{"b64": base64.b64encode(example).decode()} for example in request.examples]
        body = {
            "signature_name": self._settings.signature,
            "inputs": {self._settings.input_name: examples},
        }
        outputs = self._exchange(request, "POST", f"{model}:predict", json.dumps(body).encode())["outputs"]
        return np.array(_chosen(outputs) if isinstance(outputs, dict) else outputs, np.float32)

    def close(self) -> None:
        """Closes all connections."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()

    def _version_path(self, version: int | None) -> str:
        version = self._settings.version if version is None else version
        if version is not None:
            return f"/versions/{version}"
        return f"/labels/{quote(self._settings.label, safe='')}" if self._settings.label else ""

    def _exchange(self, request: Request, method: str, path: str, body: bytes | None = None) -> Any:
        status, text = self._roundtrip(request, method, self._prefix + path, body)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if status == 200 and isinstance(answer, dict):
            return answer
        words = answer.get("error") if isinstance(answer, dict) else None
        details = words or f"HTTP status {status}: {text[:200].decode('utf-8', 'replace')}"
        raise ServingError(_HTTP_CODES.get(status, "UNKNOWN"), details)

    def _roundtrip(self, request: Request, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", **self._settings.headers()}
        kept = getattr(self._local, "connection", None) is not None
        while True:
            connection = self._connection(request.seconds())
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                return response.status, response.read()
            except TimeoutError as error:
                self._drop(connection)
                raise ServingError("DEADLINE_EXCEEDED", f"no answer from {self._host} in time") from error
            except (OSError, http.client.HTTPException) as error:
                self._drop(connection)
                # A server may close a connection that was idle; that tells nothing about the server.
                if not kept:
                    raise ServingError(
                        "UNAVAILABLE", f"{self._host}: {error or type(error).__name__}"
                    ) from error
                kept = False

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._new_connection()
            with self._lock:
                self._open.append(connection)
        connection.timeout = seconds
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        return connection

    def _new_connection(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._host)
        return _NamedHttps(self._host, self._context, self._settings.tls.server_name)

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        connection.close()
        self._local.connection = None
        with self._lock, contextlib.suppress(ValueError):
            self._open.remove(connection)


class _NamedHttps(http.client.HTTPSConnection):
    """HTTPS to a host whose certificate may be for another name."""

    def __init__(self, host: str, context: ssl.SSLContext, server_name: str | None) -> None:
        super().__init__(host, context=context)
        self._ssl = context
        self._server_name = server_name

    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), self.timeout)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self._ssl.wrap_socket(plain, server_hostname=self._server_name or self.host)


def _ssl_context(tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        raise InputError(f"tls: cannot read {tls.ca or tls.certificate} ({error})") from error
    return context


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
    if request.kind == "predict":
        proto = _chosen(message.outputs)
        if proto.tensor_content:
            return np.frombuffer(proto.tensor_content, np.float32)
        return np.array(proto.float_val, np.float32)
    if request.kind == "metadata":
        return _metadata_of_message(message)
    states = type(message).DESCRIPTOR.fields_by_name["model_version_status"].message_type
    names = states.fields_by_name["state"].enum_type.values_by_number
    return {found.version: names[found.state].name for found in message.model_version_status}


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
