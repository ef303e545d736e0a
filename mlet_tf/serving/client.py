"""Asking a model server for CTRs, over gRPC or REST, one call for any number of rows."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mlet_tf.errors import InputError
from mlet_tf.serving import arguments
from mlet_tf.serving.dialogue import Dialogue, Pause, Steps
from mlet_tf.serving.retry import Backoff
from mlet_tf.serving.target import Target
from mlet_tf.serving.transport import Metadata, Request, ServingError, Settings, Tls
from mlet_tf.serving.transport.rest import AsyncRestTransport, RestTransport

if TYPE_CHECKING:
    from mlet_tf.datasets import ClickLogSchema
    from mlet_tf.serving.dialogue import RowsLike
    from mlet_tf.serving.transport.grpc import AsyncGrpcTransport, GrpcTransport

_T = TypeVar("_T")


class _Client:
    """What the blocking and the asyncio client share: the arguments, which `CTRClient` describes."""

    def __init__(
        self,
        target: str,
        *,
        model_name: str = "ctr",
        protocol: str = "grpc",
        signature: str = "serving_default",
        input_name: str = "examples",
        schema: "ClickLogSchema | None" = None,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 10.0,
        retries: int = 5,
        backoff: float = 0.1,
        max_batch: int = 1024,
        max_concurrency: int = 4,
        tls: Tls | bool | None = None,
        token: str | Callable[[], str] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if protocol not in ("grpc", "rest"):
            raise InputError(f"protocol: expected 'grpc' or 'rest'. Received: {protocol!r}")
        if version is not None and label is not None:
            raise InputError("version, label: expected one of both at most. Received: both")
        if schema is not None and not hasattr(schema, "raw_features"):
            raise InputError(f"schema: expected a ClickLogSchema, see load_schema. Received: {schema!r}")
        if rng is not None and not isinstance(rng, random.Random):
            raise InputError(f"rng: expected a random.Random. Received: {rng!r}")
        place = Target.parse(target, protocol)
        self._settings = Settings(
            target=place,
            model_name=arguments.text("model_name", model_name),
            signature=arguments.text("signature", signature),
            input_name=arguments.text("input_name", input_name),
            version=arguments.version_number(version),
            label=None if label is None else arguments.text("label", label),
            tls=_read_tls(tls, place),
            token=token,
        )
        _check_token(self._settings)
        self._max_concurrency = arguments.whole("max_concurrency", max_concurrency, 1)
        self._dialogue = Dialogue(
            server=str(place),
            schema=schema,
            timeout=arguments.seconds("timeout", timeout),
            backoff=Backoff(
                arguments.whole("retries", retries, 0),
                arguments.seconds("backoff", backoff, zero=True),
                rng or random.Random(),
            ),
            max_batch=arguments.whole("max_batch", max_batch, 1),
        )
        self._closed = False
        self._open(protocol)

    def _open(self, protocol: str) -> None:
        """Makes the transport and the slots for requests under way; connects only with the first request."""
        raise NotImplementedError

    def _ready_steps(self, version: int | None, timeout: float, probe: "RowsLike | None") -> Steps[None]:
        return self._dialogue.wait_until_ready(
            arguments.version_number(version), arguments.seconds("timeout", timeout, zero=True), probe
        )

    def _check_open(self) -> None:
        """Raises if the client was closed: it holds no connection any more, and opens none again."""
        if self._closed:
            raise InputError(
                f"client of {self._settings.target}: expected an open one. Received: one that was closed"
            )

    def _no_slot(self) -> ServingError:
        return ServingError(
            "DEADLINE_EXCEEDED",
            f"max_concurrency={self._max_concurrency} requests of this client were under way all the time",
        )


def _read_tls(tls: Tls | bool | None, target: Target) -> Tls | None:
    if tls is not None and not isinstance(tls, Tls | bool):
        raise InputError(f"tls: expected True, False or a Tls. Received: {tls!r}")
    if tls and target.encrypted is False:
        raise InputError(f"tls: expected https:// with it. Received: http://{target}")
    if not tls and not target.encrypted:
        return None
    return tls if isinstance(tls, Tls) else Tls()


def _check_token(settings: Settings) -> None:
    """A token goes over TLS, or stays on this machine, whose loopback no proxy sees."""
    token, target = settings.token, settings.target
    if token is None:
        return
    if not isinstance(token, str) and not callable(token):
        raise InputError(f"token: expected a text or a function. Received: {type(token).__name__}")
    if settings.tls is None and not target.is_loopback:
        raise InputError(f"token: expected tls with it, as {target} is another machine. Received: no tls")


class CTRClient(_Client):
    """Asks a model server for CTRs.

    Threads may share one client. Close it with `close` or use it in a `with` block.

    Args:
        target: `"host:port"`; for REST also `"http://host:port"` or `"https://host:port/prefix"`.
        model_name: The model's name on the server.
        protocol: `"grpc"` or `"rest"`. REST needs neither TensorFlow nor gRPC.
        signature: A signature with one input, serialised tf.Examples.
        input_name: That input's name.
        schema: Columns of the log, which decide how values are sent; see `Rows`.
        version: Version to ask; by default the newest.
        label: Label of the version to ask, such as `"stable"`.
        timeout: Seconds for one request, including its retries and the wait for a free slot.
        retries: How often a request is sent again if the server is down (UNAVAILABLE) or busy (RESOURCE_EXHAUSTED).
        backoff: Bound of the pause before the first retry, in seconds. It doubles with each retry, up to 2 s; the
            pause itself is random below the bound.
        max_batch: Rows in one request. Calls with more rows are split.
        max_concurrency: Requests under way at once; further ones wait. A model server answers four a core over gRPC
            and refuses what exceeds that.
        tls: True or a `Tls` for an encrypted connection.
        token: Sent as `authorization: Bearer`. A function is called for it before each request.
        rng: Random numbers for the pauses, for reproducible runs.

    Raises:
        InputError: An argument is out of range or has the wrong type, or a token would leave this machine without
            TLS.

    Example:
        >>> with CTRClient("127.0.0.1:8500", schema=CRITEO) as client:
        ...     client.wait_until_ready()
        ...     ctr = client.predict([{"I1": 3, "C1": "68fd1e64"}])
    """

    def _open(self, protocol: str) -> None:
        self._slots = threading.BoundedSemaphore(self._max_concurrency)
        self._transport: GrpcTransport | RestTransport
        if protocol == "grpc":
            from mlet_tf.serving.transport import grpc

            self._transport = grpc.GrpcTransport(self._settings)
        else:
            self._transport = RestTransport(self._settings)

    def predict(self, rows: "RowsLike") -> np.ndarray:
        """Predicts CTRs.

        Args:
            rows: Dicts, a pandas frame, an Arrow table or batch, or lines of a raw log; with or without the label.
                An iterator, such as an open file, is read to its end.

        Returns:
            float32 `[rows]`, in the order of the rows: every row has its CTR, or there is an error.

        Raises:
            InputError: A row cannot be sent. Nothing was sent.
            ServingError: The server refused (`row` tells which row, if one is at fault), or cannot be reached.
        """
        return self._run(self._dialogue.predict(rows))

    def status(self) -> dict[int, str]:
        """Returns the states of the model's versions, such as `{2: "AVAILABLE", 1: "END"}`.

        Raises:
            ServingError: The server refused, or cannot be reached.
        """
        return self._run(self._dialogue.status())

    def metadata(self) -> Metadata:
        """Returns, by signature, `inputs` and `outputs`: type and shape by name. The shape is None for any rank.

        Raises:
            ServingError: The server refused, or cannot be reached.
        """
        return self._run(self._dialogue.metadata())

    def wait_until_ready(
        self, version: int | None = None, *, timeout: float = 60.0, probe: "RowsLike | None" = None
    ) -> None:
        """Waits until a version is AVAILABLE and has answered a request, which a half-copied one does not.

        Args:
            version: Version to wait for; by default any.
            timeout: Seconds to wait.
            probe: Rows to ask for; by default one row with all values missing.

        Raises:
            InputError: An argument is out of range or has the wrong type.
            ServingError: No version is ready in time.
        """
        self._run(self._ready_steps(version, timeout, probe))

    def close(self) -> None:
        """Closes the connections. A closed client sends nothing any more: it raises `InputError`."""
        self._closed = True
        self._transport.close()

    def __enter__(self) -> "CTRClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, steps: Steps[_T]) -> _T:
        answer, error = None, None
        while True:
            try:
                step = steps.throw(error) if error else steps.send(answer)
            except StopIteration as done:
                return done.value
            answer, error = None, None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                continue
            try:
                with self._slot(step):
                    self._check_open()
                    answer = self._transport.send(step)
            except ServingError as failure:
                error = failure

    @contextlib.contextmanager
    def _slot(self, request: Request) -> Iterator[None]:
        if not self._slots.acquire(timeout=request.seconds()):
            raise self._no_slot()
        try:
            yield
        finally:
            self._slots.release()


class AsyncCTRClient(_Client):
    """`CTRClient` for asyncio: the same arguments and methods, awaited.

    gRPC runs on `grpc.aio`, REST in threads.

    Example:
        >>> async with AsyncCTRClient("127.0.0.1:8500") as client:
        ...     ctr = await client.predict(rows)
    """

    def _open(self, protocol: str) -> None:
        self._slots = asyncio.Semaphore(self._max_concurrency)
        self._transport: AsyncGrpcTransport | AsyncRestTransport
        if protocol == "grpc":
            from mlet_tf.serving.transport import grpc

            self._transport = grpc.AsyncGrpcTransport(self._settings)
        else:
            self._transport = AsyncRestTransport(self._settings, self._max_concurrency)

    async def predict(self, rows: "RowsLike") -> np.ndarray:
        """Predicts CTRs, as `CTRClient.predict` does."""
        return await self._run(self._dialogue.predict(rows))

    async def status(self) -> dict[int, str]:
        """Returns the states of the model's versions, as `CTRClient.status` does."""
        return await self._run(self._dialogue.status())

    async def metadata(self) -> Metadata:
        """Returns the signatures' inputs and outputs, as `CTRClient.metadata` does."""
        return await self._run(self._dialogue.metadata())

    async def wait_until_ready(
        self, version: int | None = None, *, timeout: float = 60.0, probe: "RowsLike | None" = None
    ) -> None:
        """Waits until a version has answered, as `CTRClient.wait_until_ready` does."""
        await self._run(self._ready_steps(version, timeout, probe))

    async def close(self) -> None:
        """Closes the connections, as `CTRClient.close` does."""
        self._closed = True
        await self._transport.close()

    async def __aenter__(self) -> "AsyncCTRClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, steps: Steps[_T]) -> _T:
        answer, error = None, None
        while True:
            try:
                step = steps.throw(error) if error else steps.send(answer)
            except StopIteration as done:
                return done.value
            answer, error = None, None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                async with self._slot(step):
                    self._check_open()
                    answer = await self._transport.send(step)
            except ServingError as failure:
                error = failure

    @contextlib.asynccontextmanager
    async def _slot(self, request: Request) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(request.seconds()):
                await self._slots.acquire()
        except TimeoutError:
            raise self._no_slot() from None
        try:
            yield
        finally:
            self._slots.release()
