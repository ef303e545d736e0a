"""Asking a model server for CTRs, over gRPC or REST, one call for any number of rows."""

import asyncio
import contextlib
import ipaddress
import random
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from mlet_tf.errors import InputError
from mlet_tf.serving.transport import (
    AsyncGrpcTransport,
    AsyncRestTransport,
    GrpcTransport,
    Metadata,
    Request,
    RestTransport,
    ServingError,
    Settings,
    Tls,
)

if TYPE_CHECKING:
    from mlet_tf.datasets import ClickLogSchema

_LONGEST_PAUSE = 2.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Pause:
    """Seconds to wait before the next step."""

    seconds: float


# What a client does next; whoever runs the steps sends the answer back in, or throws the error in.
_Steps = Generator[Request | _Pause, Any, _T]


class _Client:
    """What the blocking and the asyncio client share: checks, splitting, retries, finding the bad row."""

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
        tls: Tls | bool | None = None,
        token: str | Callable[[], str] | None = None,
    ) -> None:
        """See `CTRClient`; opens no connection yet."""
        if protocol not in ("grpc", "rest"):
            raise InputError(f"protocol: expected 'grpc' or 'rest'. Received: {protocol!r}")
        if version is not None and label is not None:
            raise InputError("version, label: expected one of both at most. Received: both")
        if isinstance(max_batch, bool) or not isinstance(max_batch, int) or max_batch < 1:
            raise InputError(f"max_batch: expected an integer of at least 1. Received: {max_batch!r}")
        if timeout <= 0 or retries < 0 or backoff < 0:
            raise InputError(
                "timeout, retries, backoff: expected more than 0, 0 or more, 0 or more. "
                f"Received: {timeout!r}, {retries!r}, {backoff!r}"
            )
        host, encrypted = _read_target(target, protocol)
        options = (tls if isinstance(tls, Tls) else Tls()) if tls or encrypted else None
        if token is not None and options is None and not _is_loopback(host):
            raise InputError(f"token: expected tls with it, as {host} is another machine. Received: no tls")
        self._settings = Settings(host, model_name, signature, input_name, version, label, options, token)
        self._schema = schema
        self._protocol = protocol
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff
        self._max_batch = max_batch
        self._transport = self._connect()

    def _connect(self) -> Any:
        raise NotImplementedError

    def _predict_steps(self, rows: Any, version: int | None = None) -> _Steps[np.ndarray]:
        from mlet_tf.serving.rows import Rows

        batch = Rows(rows, self._schema)
        answers = np.empty(batch.count, np.float32)
        for begin in range(0, batch.count, self._max_batch):
            chunk = batch.examples[begin : begin + self._max_batch]
            try:
                answers[begin : begin + len(chunk)] = yield from self._ctr_steps(chunk, version)
            except ServingError as error:
                if error.code != "INVALID_ARGUMENT":
                    raise
                found = yield from self._find_row(chunk, version)
                if found is None:
                    raise
                row, reason = begin + found[0], found[1]
                shown = batch.describe(row)
                raise ServingError(reason.code, reason.details, row=row, shown=shown) from None
        return answers

    def _ctr_steps(self, examples: Sequence[bytes], version: int | None) -> _Steps[np.ndarray]:
        values = yield from self._retried("predict", examples, version)
        values = np.reshape(values, -1)
        if len(values) != len(examples):
            raise ServingError("INTERNAL", f"{len(examples)} rows were sent, {len(values)} CTRs came back")
        return values

    def _retried(self, kind: str, examples: Sequence[bytes] = (), version: int | None = None) -> _Steps[Any]:
        """One request, sent again where the server is unavailable, and for no other reason."""
        request = Request(kind, time.monotonic() + self._timeout, examples, version)
        for attempt in range(self._retries):
            try:
                return (yield request)
            except ServingError as error:
                pause = min(self._backoff * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.8, 1.2)
                if error.code != "UNAVAILABLE" or time.monotonic() + pause >= request.deadline:
                    raise
            yield _Pause(pause)
        return (yield request)

    def _find_row(
        self, examples: Sequence[bytes], version: int | None
    ) -> _Steps[tuple[int, ServingError] | None]:
        """The first row that is refused on its own, found by halving; None if it is not a row's fault."""
        begin, end, reason = 0, len(examples), None
        while end - begin > 1 or reason is None:
            middle = max(begin + 1, (begin + end) // 2)
            error = yield from self._refusal(examples[begin:middle], version)
            if error is None:
                begin = middle
            elif error.code == "INVALID_ARGUMENT":
                end, reason = middle, error
            else:
                return None
            if begin == len(examples):
                return None
        if begin == 0:
            # Nothing was answered so far: what is said of the last row and of an empty one is no row's fault.
            for other in ([examples[-1:]] if len(examples) > 1 else []) + [[b""]]:
                error = yield from self._refusal(other, version)
                if error is None or error.details != reason.details:
                    break
            else:
                return None
        return begin, reason

    def _refusal(self, examples: Sequence[bytes], version: int | None) -> _Steps[ServingError | None]:
        """Why the server refuses the rows; None if it answers."""
        try:
            yield from self._ctr_steps(examples, version)
        except ServingError as error:
            return error
        return None

    def _ready_steps(self, version: int | None, timeout: float, probe: Any) -> _Steps[None]:
        end = time.monotonic() + timeout
        rows = [{}] if probe is None else probe
        while True:
            try:
                states = yield Request("status", min(end + 1.0, time.monotonic() + self._timeout))
                available = [number for number, state in states.items() if state == "AVAILABLE"]
                if (version in available) if version is not None else available:
                    yield from self._predict_steps(rows, version)
                    return
                reason = ServingError("NOT_FOUND", f"the versions are {states}")
            except ServingError as error:
                reason = error
            if time.monotonic() >= end:
                wanted = "no version is" if version is None else f"version {version} is not"
                raise ServingError(
                    "DEADLINE_EXCEEDED",
                    f"{wanted} ready at {self._settings.target} after {timeout:g} s; the last answer: {reason}",
                ) from reason
            yield _Pause(0.1)


def _read_target(target: str, protocol: str) -> tuple[str, bool]:
    """Host, port and path without the scheme, and whether the scheme asks for TLS."""
    scheme, rest = target.split("://", 1) if "://" in target else ("http", target)
    if protocol == "grpc" and rest == target:
        return target, False
    if protocol == "rest" and scheme in ("http", "https") and _has_valid_port(rest):
        return rest.rstrip("/"), scheme == "https"
    wanted = "host:port" if protocol == "grpc" else "host:port or http(s)://host:port"
    raise InputError(f"target: expected {wanted} for {protocol}. Received: {target!r}")


def _has_valid_port(target: str) -> bool:
    try:
        return urlsplit(f"//{target}").port != 0
    except ValueError:
        return False


def _is_loopback(target: str) -> bool:
    host = urlsplit(f"//{target}").hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class CTRClient(_Client):
    """Asks a model server for CTRs. It may be shared by threads; leave it with `close` or a `with` block.

    Args:
        target: `"host:port"`; for REST also `"http://host:port"` or `"https://host:port/prefix"`.
        model_name: The model's name on the server.
        protocol: `"grpc"` or `"rest"`. REST does without TensorFlow.
        signature: A signature of one input, serialised tf.Examples.
        input_name: That input's name.
        schema: Columns of the log, which say how values are sent; see `Rows`.
        version: The version to ask; without it the newest.
        label: The label of the version to ask, such as `"stable"`.
        timeout: Seconds that one request may take, its retries included.
        retries: How often a request is sent again where the server is UNAVAILABLE.
        backoff: Seconds before the first retry; they double each time, to two at most.
        max_batch: Rows in one request; more are split.
        tls: True, or a `Tls`, for an encrypted connection.
        token: Sent as `authorization: Bearer`; a function is asked for it before each request.

    Raises:
        InputError: An argument does not fit.

    Example:
        >>> with CTRClient("127.0.0.1:8500", schema=CRITEO) as client:
        ...     client.wait_until_ready()
        ...     ctr = client.predict([{"I1": 3, "C1": "68fd1e64"}])
    """

    def _connect(self) -> GrpcTransport | RestTransport:
        return (GrpcTransport if self._protocol == "grpc" else RestTransport)(self._settings)

    def predict(self, rows: Any) -> np.ndarray:
        """CTRs of rows.

        Args:
            rows: A list of dicts, a pandas frame, an Arrow table, or lines of a raw log; see `Rows`.

        Returns:
            float32 `[rows]`, in the rows' order.

        Raises:
            InputError: A row cannot be sent.
            ServingError: The server refused (`row` tells which one), or cannot be reached.
        """
        return self._run(self._predict_steps(rows))

    def status(self) -> dict[int, str]:
        """The states of the model's versions, such as `{2: "AVAILABLE", 1: "END"}`."""
        return self._run(self._retried("status"))

    def metadata(self) -> Metadata:
        """By signature, `inputs` and `outputs`: type and shape by name, None for a shape of any rank."""
        return self._run(self._retried("metadata"))

    def wait_until_ready(
        self, version: int | None = None, *, timeout: float = 60.0, probe: Any = None
    ) -> None:
        """Waits until a version is AVAILABLE and has answered: a half-copied one may be only the first.

        Args:
            version: The version to wait for; without it any.
            timeout: Seconds to wait.
            probe: Rows to ask for; without them one row with all values missing.

        Raises:
            ServingError: It is not ready in time.
        """
        self._run(self._ready_steps(version, timeout, probe))

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def __enter__(self) -> "CTRClient":
        """The client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()

    def _run(self, steps: _Steps[_T]) -> _T:
        answer, error = None, None
        while True:
            try:
                step = steps.throw(error) if error else steps.send(answer)
            except StopIteration as done:
                return done.value
            answer, error = None, None
            if isinstance(step, _Pause):
                time.sleep(step.seconds)
                continue
            try:
                answer = self._transport.send(step)
            except ServingError as failure:
                error = failure


class AsyncCTRClient(_Client):
    """`CTRClient` for asyncio: the same arguments and methods, awaited.

    gRPC runs on `grpc.aio`, REST in threads.

    Example:
        >>> async with AsyncCTRClient("127.0.0.1:8500") as client:
        ...     ctr = await client.predict(rows)
    """

    def _connect(self) -> AsyncGrpcTransport | AsyncRestTransport:
        return (AsyncGrpcTransport if self._protocol == "grpc" else AsyncRestTransport)(self._settings)

    async def predict(self, rows: Any) -> np.ndarray:
        """See `CTRClient.predict`."""
        return await self._run(self._predict_steps(rows))

    async def status(self) -> dict[int, str]:
        """See `CTRClient.status`."""
        return await self._run(self._retried("status"))

    async def metadata(self) -> Metadata:
        """See `CTRClient.metadata`."""
        return await self._run(self._retried("metadata"))

    async def wait_until_ready(
        self, version: int | None = None, *, timeout: float = 60.0, probe: Any = None
    ) -> None:
        """See `CTRClient.wait_until_ready`."""
        await self._run(self._ready_steps(version, timeout, probe))

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    async def __aenter__(self) -> "AsyncCTRClient":
        """The client itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes."""
        await self.close()

    async def _run(self, steps: _Steps[_T]) -> _T:
        answer, error = None, None
        while True:
            try:
                step = steps.throw(error) if error else steps.send(answer)
            except StopIteration as done:
                return done.value
            answer, error = None, None
            if isinstance(step, _Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                answer = await self._transport.send(step)
            except ServingError as failure:
                error = failure
