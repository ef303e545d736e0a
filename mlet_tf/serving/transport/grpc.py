"""Requests over gRPC, in the messages of the TensorFlow Serving API. Importing this imports TensorFlow."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import Message
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from mlet_tf.errors import InputError
from mlet_tf.serving.transport.base import (
    Answer,
    Metadata,
    Request,
    ServingError,
    Settings,
    TensorInfo,
    Tls,
    ctr_output,
    reading,
    type_name,
)

# The size of a message or of its headers. All other exhaustion is temporary.
_TOO_LARGE = ("larger than max", "metadata size exceeds")


class GrpcTransport:
    """gRPC over one channel. Threads may share it.

    Args:
        settings: Where requests go.

    Raises:
        InputError: A file of the TLS settings cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._channel = _channel(grpc, settings)
        self._calls = _Calls(settings, self._channel)

    def send(self, request: Request) -> Answer:
        """Sends a request once and returns the answer.

        Raises:
            ServingError: The server refused, cannot be reached, or gave an answer that no model server gives.
        """
        try:
            return _read(request, self._calls.start(request))
        except grpc.RpcError as error:
            raise _failure(error) from None

    def close(self) -> None:
        """Closes the channel; requests under way are cancelled."""
        self._channel.close()


class AsyncGrpcTransport:
    """gRPC over one channel of `grpc.aio`.

    Args:
        settings: Where requests go.

    Raises:
        InputError: A file of the TLS settings cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._channel = _channel(grpc.aio, settings)
        self._calls = _Calls(settings, self._channel)

    async def send(self, request: Request) -> Answer:
        """Sends a request once and returns the answer; raises as `GrpcTransport.send` does."""
        try:
            return _read(request, await self._calls.start(request))
        except grpc.RpcError as error:
            raise _failure(error) from None

    async def close(self) -> None:
        """Closes the channel; requests under way are cancelled."""
        await self._channel.close()


class _Calls:
    """Requests as calls of the server's methods.

    Args:
        settings: Where requests go.
        channel: What the calls go through.
    """

    def __init__(self, settings: Settings, channel: grpc.Channel | grpc.aio.Channel) -> None:
        self._settings = settings
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self._model = model_service_pb2_grpc.ModelServiceStub(channel)

    def start(self, request: Request) -> Message | Awaitable[Message]:
        """Starts a call; returns its answer, or an awaitable on `grpc.aio`."""
        method, message = {
            "predict": self._predict,
            "status": self._status,
            "metadata": self._metadata,
        }[request.kind](request)
        return method(message, timeout=request.seconds(), metadata=tuple(self._settings.headers().items()))

    def _predict(self, request: Request) -> tuple[Callable, Message]:
        message = predict_pb2.PredictRequest()
        self._fill_spec(message.model_spec, request.version)
        message.model_spec.signature_name = self._settings.signature
        tensor = message.inputs[self._settings.input_name]
        tensor.dtype = types_pb2.DT_STRING
        tensor.tensor_shape.dim.add(size=len(request.examples))
        tensor.string_val.extend(request.examples)
        return self._prediction.Predict, message

    def _status(self, _: Request) -> tuple[Callable, Message]:
        message = get_model_status_pb2.GetModelStatusRequest()
        message.model_spec.name = self._settings.model_name
        return self._model.GetModelStatus, message

    def _metadata(self, request: Request) -> tuple[Callable, Message]:
        message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._fill_spec(message.model_spec, request.version)
        return self._prediction.GetModelMetadata, message

    def _fill_spec(self, spec: model_pb2.ModelSpec, version: int | None) -> None:
        spec.name = self._settings.model_name
        version = self._settings.version if version is None else version
        if version is not None:
            spec.version.value = version
        elif self._settings.label:
            spec.version_label = self._settings.label


def _channel(library: ModuleType, settings: Settings) -> grpc.Channel | grpc.aio.Channel:
    """A channel of `grpc` or of `grpc.aio`."""
    address, options = settings.target.address, _channel_options(settings)
    if settings.tls:
        return library.secure_channel(address, _credentials(settings.tls), options)
    return library.insecure_channel(address, options)


def _channel_options(settings: Settings) -> list[tuple[str, int | str]]:
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        # A server that comes back is found within a second; the client bounds the retries.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    if settings.target.is_loopback:
        # A proxy would look for the port on its own machine, and could read a token on the way.
        options.append(("grpc.enable_http_proxy", 0))
    if settings.tls and settings.tls.server_name:
        options.append(("grpc.ssl_target_name_override", settings.tls.server_name))
    return options


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    try:
        ca, key, certificate = (
            Path(path).read_bytes() if path else None for path in (tls.ca, tls.key, tls.certificate)
        )
    except OSError as error:
        raise InputError(f"tls: cannot read {error.filename} ({error.strerror})") from error
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _failure(error: grpc.RpcError) -> ServingError:
    details = error.details() or "no details"
    too_large = any(words in details for words in _TOO_LARGE)
    return ServingError(error.code().name, details, retryable=False if too_large else None)


def _read(request: Request, message: Message) -> Answer:
    readers: dict[str, Callable[[Any], Answer]]
    readers = {"predict": _values, "status": _states, "metadata": _metadata_of}
    with reading(message):
        return readers[request.kind](message)


def _states(message: get_model_status_pb2.GetModelStatusResponse) -> dict[int, str]:
    name_of = get_model_status_pb2.ModelVersionStatus.State.Name
    return {found.version: name_of(found.state) for found in message.model_version_status}


def _values(message: predict_pb2.PredictResponse) -> np.ndarray:
    proto = ctr_output(message.outputs)
    if proto.dtype != types_pb2.DT_FLOAT:
        raise ValueError
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, np.float32)
    return np.array(proto.float_val, np.float32)


def _metadata_of(message: get_model_metadata_pb2.GetModelMetadataResponse) -> Metadata:
    def tensors(infos: Mapping[str, meta_graph_pb2.TensorInfo]) -> dict[str, TensorInfo]:
        found = {}
        for name, info in infos.items():
            shape = info.tensor_shape
            dims = None if shape.unknown_rank else [dim.size for dim in shape.dim]
            found[name] = (type_name(types_pb2.DataType.Name(info.dtype)), dims)
        return found

    signatures = get_model_metadata_pb2.SignatureDefMap()
    message.metadata["signature_def"].Unpack(signatures)
    return {
        name: {"inputs": tensors(signature.inputs), "outputs": tensors(signature.outputs)}
        for name, signature in signatures.signature_def.items()
    }
