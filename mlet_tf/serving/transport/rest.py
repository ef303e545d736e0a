"""Requests over REST, without TensorFlow and gRPC."""

import asyncio
import base64
import http.client
import json
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import numpy as np

from mlet_tf.errors import InputError
from mlet_tf.serving.transport.base import (
    SHOWN_CHARACTERS,
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
from mlet_tf.serving.transport.connections import Connection, Pool
from mlet_tf.types import JsonObject

_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_TOO_LARGE = 413  # Permanent, unlike other exhaustion.


class RestTransport:
    """HTTP/1.1 over kept connections. Threads may share it.

    Args:
        settings: Where requests go.

    Raises:
        InputError: A file of the TLS settings cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context = _ssl_context(settings.tls) if settings.tls else None
        self._pool = Pool(self._new_connection)

    def send(self, request: Request) -> Answer:
        """Sends a request once and returns the answer.

        Raises:
            ServingError: The server refused, cannot be reached, or gave an answer that no model server gives.
        """
        model = f"/v1/models/{quote(self._settings.model_name, safe='')}"
        if request.kind == "status":
            return self._exchange(request, _states, "GET", model)
        model += self._version_path(request.version)
        if request.kind == "metadata":
            return self._exchange(request, _metadata, "GET", f"{model}/metadata")
        examples = [{"b64": base64.b64encode(example).decode()} for example in request.examples]
        body = {
            "signature_name": self._settings.signature,
            "inputs": {self._settings.input_name: examples},
        }
        return self._exchange(request, _values, "POST", f"{model}:predict", json.dumps(body).encode())

    def close(self) -> None:
        """Closes the connections; one that is in use closes after its answer."""
        self._pool.close()

    def _version_path(self, version: int | None) -> str:
        version = self._settings.version if version is None else version
        if version is not None:
            return f"/versions/{version}"
        return f"/labels/{quote(self._settings.label, safe='')}" if self._settings.label else ""

    def _exchange(
        self,
        request: Request,
        read: Callable[[JsonObject], Answer],
        method: str,
        path: str,
        body: bytes | None = None,
    ) -> Answer:
        status, text = self._roundtrip(request, method, self._settings.target.prefix + path, body)
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if status == 200:
            with reading(text):
                return read(answer)
        words = answer.get("error") if isinstance(answer, dict) else None
        shown = text[:SHOWN_CHARACTERS].decode("utf-8", "replace")
        raise ServingError(
            _CODES.get(status, "UNKNOWN"),
            str(words) if words else f"HTTP status {status}: {shown}",
            retryable=False if status == _TOO_LARGE else None,
        )

    def _roundtrip(self, request: Request, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", **self._settings.headers()}
        address = self._settings.target.address
        with self._pool.lend(request.deadline) as connection:
            while True:
                kept = connection.sock is not None
                try:
                    connection.request(method, path, body, headers)
                    response = connection.getresponse()
                    return response.status, response.read()
                except TimeoutError as error:
                    raise ServingError("DEADLINE_EXCEEDED", f"no answer from {address} in time") from error
                except (OSError, UnicodeError, http.client.HTTPException) as error:
                    connection.close()
                    # A server may close an idle connection; that says nothing about its health.
                    if not kept:
                        raise ServingError("UNAVAILABLE", f"{address}: {_words(error)}") from error

    def _new_connection(self) -> Connection:
        target, tls = self._settings.target, self._settings.tls
        return Connection(target.host, target.port, self._context, tls.server_name if tls else None)


class AsyncRestTransport:
    """REST for asyncio: each request runs in a thread.

    Args:
        settings: Where requests go.
        threads: Number of threads; the event loop's own are few and shared with other code.

    Raises:
        InputError: A file of the TLS settings cannot be read.
    """

    def __init__(self, settings: Settings, threads: int) -> None:
        self._transport = RestTransport(settings)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="ctr-client")

    async def send(self, request: Request) -> Answer:
        """Sends a request once and returns the answer; raises as `RestTransport.send` does."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._transport.send, request)

    async def close(self) -> None:
        """Closes the connections; one that is in use closes after its answer."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._transport.close()


def _ssl_context(tls: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        raise InputError(f"tls: cannot read {tls.ca or tls.certificate} ({error})") from error
    return context


def _words(error: Exception) -> str:
    """What went wrong with a connection, in words for people."""
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, http.client.RemoteDisconnected):
        return f"the answer is not HTTP; is this a gRPC port? It begins with {error.args[0][:SHOWN_CHARACTERS]!r}"
    return str(error) or type(error).__name__


def _states(answer: JsonObject) -> dict[int, str]:
    return {int(version["version"]): version["state"] for version in answer["model_version_status"]}


def _values(answer: JsonObject) -> np.ndarray:
    outputs = answer["outputs"]
    values = np.array(ctr_output(outputs) if isinstance(outputs, dict) else outputs)
    # NumPy would convert null to NaN and text to a number.
    if values.dtype.kind not in "fiu":
        raise ValueError
    return values.astype(np.float32)


def _metadata(answer: JsonObject) -> Metadata:
    def tensors(infos: JsonObject) -> dict[str, TensorInfo]:
        found = {}
        for name, info in infos.items():
            shape = info["tensor_shape"]
            dims = None if shape["unknown_rank"] else [int(dim["size"]) for dim in shape["dim"]]
            found[name] = (type_name(info["dtype"]), dims)
        return found

    signatures = answer["metadata"]["signature_def"]["signature_def"]
    return {
        name: {side: tensors(signature[side]) for side in ("inputs", "outputs")}
        for name, signature in signatures.items()
    }
