"""Common code of REST and gRPC: requests, settings and errors."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mlet_tf.errors import InputError
from mlet_tf.serving.target import Target

SHOWN_CHARACTERS = 200
_OUTPUT = "ctr"
_RETRYABLE = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
_T = TypeVar("_T")

# By signature, `inputs` and `outputs`: type and shape by name. The shape is None if the rank is unknown.
TensorInfo = tuple[str, list[int] | None]
Metadata = dict[str, dict[str, dict[str, TensorInfo]]]

# CTRs, or states by version, or metadata, as the request's `kind` says.
Answer = np.ndarray | dict[int, str] | Metadata


class ServingError(RuntimeError):
    """The server refused a request, or could not be reached.

    Attributes:
        code: Name of a gRPC code such as `"INVALID_ARGUMENT"`; over REST, the one of the HTTP status.
        details: The server's message.
        row: Index of the row that was refused, if it is known.
        retryable: Whether the same request may succeed later: the server is down or busy.
    """

    def __init__(
        self,
        code: str,
        details: str,
        *,
        row: int | None = None,
        shown: str = "",
        retryable: bool | None = None,
    ) -> None:
        at = f"row {row}: " if row is not None else ""
        super().__init__(f"{at}{code}: {details}" + (f" (the row: {shown})" if shown else ""))
        self.code = code
        self.details = details
        self.row = row
        self.retryable = code in _RETRYABLE if retryable is None else retryable
        self._shown = shown

    def __reduce__(self) -> tuple[Callable[..., "ServingError"], tuple[str, str]]:
        # The default passes the message alone, so errors from a process pool could not be unpickled.
        make = functools.partial(ServingError, row=self.row, shown=self._shown, retryable=self.retryable)
        return make, (self.code, self.details)


@dataclass(frozen=True)
class Tls:
    """How to reach a server over TLS.

    Attributes:
        ca: PEM file of the certificate authorities to trust; None for the system's.
        certificate: PEM file of the client's certificate, if the server asks for one.
        key: PEM file of the client's private key.
        server_name: Name in the server's certificate, if it differs from the target's host.
    """

    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None


@dataclass(frozen=True)
class Settings:
    """Target of requests, and their content besides the rows. The fields are arguments of `CTRClient`."""

    target: Target
    model_name: str
    signature: str
    input_name: str
    version: int | None
    label: str | None
    tls: Tls | None
    token: str | Callable[[], str] | None

    def headers(self) -> dict[str, str]:
        """Headers of the next request.

        Raises:
            InputError: The token cannot be sent, for example because it has a line end.
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
        deadline: When to give up, as `time.monotonic()` counts.
        examples: Serialised tf.Examples to predict.
        version: The version to ask, instead of the one in the settings.
    """

    kind: str
    deadline: float
    examples: Sequence[bytes] = ()
    version: int | None = None

    def seconds(self) -> float:
        """Seconds left.

        Raises:
            ServingError: There are none left.
        """
        return seconds_until(self.deadline)


def seconds_until(deadline: float) -> float:
    """Seconds until a deadline.

    Raises:
        ServingError: The deadline has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise ServingError("DEADLINE_EXCEEDED", "the time for the request is over")
    return left


def ctr_output(outputs: Mapping[str, _T]) -> _T:
    """The output with the CTRs: the only one, or the one named `ctr`.

    Raises:
        ServingError: There are several, and none of that name.
    """
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    if _OUTPUT not in outputs:
        raise ServingError("INTERNAL", f"expected an output named {_OUTPUT!r}, received {sorted(outputs)}")
    return outputs[_OUTPUT]


@contextlib.contextmanager
def reading(answer: object) -> Iterator[None]:
    """Turns any failure to read an answer into a `ServingError`: a model server would not give such an answer."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        text = answer[:SHOWN_CHARACTERS].decode("utf-8", "replace") if isinstance(answer, bytes) else answer
        shown = str(text)[:SHOWN_CHARACTERS]
        raise ServingError("INTERNAL", f"expected a model server's answer, received {shown!r}") from error


def type_name(name: str) -> str:
    """A data type such as `DT_FLOAT` as `float`."""
    return name.removeprefix("DT_").lower()
