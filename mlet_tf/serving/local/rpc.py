"""The gRPC interface of the stand-in server."""

import logging
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from mlet_tf.errors import InputError
from mlet_tf.serving.local.models import Models
from mlet_tf.serving.local.status import Code, StatusError, invalid

_log = logging.getLogger(__name__)
# The names that the real server reports on; the empty one stands for all of it.
_HEALTH_SERVICES = ("", "PredictionService", "ModelService")
_MAX_HEALTH_SERVICE_BYTES = 200
_HEALTH_REFUSAL = (Code.INVALID_ARGUMENT, "could not parse request")
_UNREADABLE = object()

Servicer = TypeVar("Servicer")
Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


def _answered(
    method: Callable[[Servicer, Request], Response],
) -> Callable[[Servicer, Request, grpc.ServicerContext], Response]:
    """Turns the error of a method into the call's status."""

    def wrapped(self: Servicer, request: Request, context: grpc.ServicerContext) -> Response:
        try:
            return method(self, request)
        except StatusError as error:
            refusal = error
        except Exception as error:  # A bug of this server.
            _log.exception("%s failed", method.__name__)
            refusal = StatusError(Code.INTERNAL, f"{type(error).__name__}: {error}")
        return context.abort(refusal.code, refusal.message)

    return wrapped


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict, Classify, Regress, MultiInference, GetModelMetadata.

    Args:
        models: the models to query.
    """

    def __init__(self, models: Models) -> None:
        self._models = models

    @_answered
    def Predict(self, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:  # noqa: N802
        """Named tensors in, named tensors out."""
        with self._models.use(_spec(request)) as servable:
            return servable.predict_proto(request)

    @_answered
    def Classify(  # noqa: N802
        self, request: classification_pb2.ClassificationRequest
    ) -> classification_pb2.ClassificationResponse:
        """Examples in, classes and scores out."""
        with self._models.use(_spec(request)) as servable:
            return servable.classify(request)

    @_answered
    def Regress(  # noqa: N802
        self, request: regression_pb2.RegressionRequest
    ) -> regression_pb2.RegressionResponse:
        """Examples in, one number each out."""
        with self._models.use(_spec(request)) as servable:
            return servable.regress(request)

    @_answered
    def MultiInference(  # noqa: N802
        self, request: inference_pb2.MultiInferenceRequest
    ) -> inference_pb2.MultiInferenceResponse:
        """Several classify and regress tasks on the same examples."""
        spec = request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
        with self._models.use(spec) as servable:
            return servable.multi_inference(request)

    @_answered
    def GetModelMetadata(  # noqa: N802
        self, request: get_model_metadata_pb2.GetModelMetadataRequest
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """The signatures."""
        spec = _spec(request)
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != "signature_def":
                raise invalid(f"Metadata field {name} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        signatures = get_model_metadata_pb2.SignatureDefMap()
        with self._models.use(spec) as servable:
            response.model_spec.name = servable.name
            response.model_spec.version.value = servable.version
            for name, signature in servable.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
        response.metadata["signature_def"].Pack(signatures)
        return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus. HandleReloadConfigRequest is UNIMPLEMENTED.

    Args:
        models: the models to query.
    """

    def __init__(self, models: Models) -> None:
        self._models = models

    @_answered
    def GetModelStatus(  # noqa: N802
        self, request: get_model_status_pb2.GetModelStatusRequest
    ) -> get_model_status_pb2.GetModelStatusResponse:
        """The states of a model's versions."""
        return self._models.status(_spec(request))


def _spec(request: Message) -> model_pb2.ModelSpec:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return request.model_spec


class _Health(health.HealthServicer):
    """The standard health service, with the real server's words for a name it does not know."""

    def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Whether a service answers."""
        if len(request.service.encode()) > _MAX_HEALTH_SERVICE_BYTES:
            context.abort(*_HEALTH_REFUSAL)
        if request.service not in _HEALTH_SERVICES:
            context.abort(Code.NOT_FOUND, "service name unknown")
        return super().Check(request, context)


class _Unreadable(grpc.ServerInterceptor):
    """Refuses bytes that are no message of their method, with the real server's code and words."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        is_health = handler_call_details.method.startswith("/grpc.health.")
        refusal = _HEALTH_REFUSAL if is_health else (Code.INTERNAL, "")

        def read(data: bytes) -> Message | object:
            try:
                return handler.request_deserializer(data)
            except DecodeError:
                return _UNREADABLE

        def answer(request: Message | object, context: grpc.ServicerContext) -> Message:
            if request is _UNREADABLE:
                context.abort(*refusal)
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(answer, read, handler.response_serializer)


class _Unknown(grpc.GenericRpcHandler):
    """Refuses unknown methods without words, as the real server does."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def refuse(_: Iterator[bytes], context: grpc.ServicerContext) -> None:
            context.abort(Code.UNIMPLEMENTED, "")

        return grpc.stream_stream_rpc_method_handler(refuse)


class RpcServer:
    """The gRPC server.

    Args:
        models: the models to query.
        host: the address to listen on.
        port: the port; 0 for a free one.
        max_request_bytes: the largest message taken.
        threads: requests answered at the same time.
        credentials: for TLS; None for plain text.

    Raises:
        InputError: if the port cannot be had.
    """

    def __init__(
        self,
        models: Models,
        host: str,
        port: int,
        max_request_bytes: int,
        threads: int,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
            interceptors=[_Unreadable()],
            options=[
                ("grpc.max_receive_message_length", max_request_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(models), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(models), self._server)
        self._health = _Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for name in _HEALTH_SERVICES:
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._server.add_generic_rpc_handlers((_Unknown(),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials:
                self.port = self._server.add_secure_port(address, credentials)
            else:
                self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise InputError(f"port: cannot listen on {address} ({error})") from error
        self._server.start()

    def stop(self, grace_seconds: float) -> None:
        """Reports NOT_SERVING, takes no more calls, and waits for those under way."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_seconds).wait()
