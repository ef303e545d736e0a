"""The sequence of requests behind each method of a client. Nothing is sent here, so blocking and asyncio share it.

Each method is a generator. It yields a `Request` to send or a `Pause` to make, receives the answer to the request, or
its `ServingError` as an exception, and returns the result.
"""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from mlet_tf.serving.retry import Backoff
from mlet_tf.serving.transport import Metadata, Request, ServingError

if TYPE_CHECKING:
    from mlet_tf.datasets import ClickLogSchema
    from mlet_tf.datasets.values import Text
    from mlet_tf.serving.rows import RowBatch

    RowsLike: TypeAlias = RowBatch | Iterator[Mapping[str, object]] | Iterator[Text]

_POLL_SECONDS = 0.1
_T = TypeVar("_T")


@dataclass(frozen=True)
class Pause:
    """Seconds to wait before the next step."""

    seconds: float


# The value sent in is the answer to the yielded request; its type follows from the request's kind.
Steps = Generator[Request | Pause, Any, _T]


@dataclass(frozen=True)
class Dialogue:
    """The requests behind each method of a client.

    Attributes:
        server: What to call the server in messages.
        schema: Columns of the log, if known.
        timeout: Seconds for each request, its retries included.
        backoff: When to send a request again.
        max_batch: Rows in one request.
    """

    server: str
    schema: "ClickLogSchema | None"
    timeout: float
    backoff: Backoff
    max_batch: int

    def predict(self, rows: "RowsLike", version: int | None = None) -> Steps[np.ndarray]:
        """CTRs of rows, float32 `[rows]`, `max_batch` rows in a request."""
        from mlet_tf.serving.rows import Rows

        # A file or a generator: rows are counted, and the one at fault is looked up again.
        batch = Rows(list(rows) if isinstance(rows, Iterator) else rows, self.schema)
        answers = np.empty(batch.count, np.float32)
        for begin in range(0, batch.count, self.max_batch):
            chunk = batch.examples[begin : begin + self.max_batch]
            try:
                answers[begin : begin + len(chunk)] = yield from self._ctrs(chunk, version)
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

    def status(self) -> Steps[dict[int, str]]:
        """States of the model's versions."""
        return (yield from self._retried("status"))

    def metadata(self) -> Steps[Metadata]:
        """Inputs and outputs of the model's signatures."""
        return (yield from self._retried("metadata"))

    def wait_until_ready(self, version: int | None, timeout: float, probe: "RowsLike | None") -> Steps[None]:
        """Asks until a version is AVAILABLE and has answered."""
        end = time.monotonic() + timeout
        rows: RowsLike = [{}] if probe is None else list(probe) if isinstance(probe, Iterator) else probe
        while True:
            try:
                states = yield Request("status", min(end + 1.0, time.monotonic() + self.timeout))
                available = [number for number, state in states.items() if state == "AVAILABLE"]
                if (version in available) if version is not None else available:
                    yield from self.predict(rows, version)
                    return
                reason = ServingError("NOT_FOUND", f"the versions are {states}")
            except ServingError as error:
                reason = error
            if time.monotonic() >= end:
                wanted = "no version is" if version is None else f"version {version} is not"
                raise ServingError(
                    "DEADLINE_EXCEEDED",
                    f"{wanted} ready at {self.server} after {timeout:g} s; the last answer: {reason}",
                ) from reason
            yield Pause(_POLL_SECONDS)

    def _ctrs(self, examples: Sequence[bytes], version: int | None) -> Steps[np.ndarray]:
        values = yield from self._retried("predict", examples, version)
        values = np.reshape(values, -1)
        if len(values) != len(examples):
            raise ServingError("INTERNAL", f"{len(examples)} rows were sent, {len(values)} CTRs came back")
        return values

    def _retried(self, kind: str, examples: Sequence[bytes] = (), version: int | None = None) -> Steps[Any]:
        """One request, sent again while the server is down or busy."""
        request = Request(kind, time.monotonic() + self.timeout, examples, version)
        attempt = 0
        while True:
            try:
                return (yield request)
            except ServingError as error:
                seconds = self.backoff.pause(error, attempt, request.deadline)
            yield Pause(seconds)
            attempt += 1

    def _find_row(
        self, examples: Sequence[bytes], version: int | None
    ) -> Steps[tuple[int, ServingError] | None]:
        """The first row that is refused on its own, found by halving; None if no row is at fault."""
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
            # Nothing was answered so far: an error that the last row and an empty one get too is no row's fault.
            for other in ([examples[-1:]] if len(examples) > 1 else []) + [[b""]]:
                error = yield from self._refusal(other, version)
                if error is None or error.details != reason.details:
                    break
            else:
                return None
        return begin, reason

    def _refusal(self, examples: Sequence[bytes], version: int | None) -> Steps[ServingError | None]:
        """Why the server refuses the rows; None if it answers."""
        try:
            yield from self._ctrs(examples, version)
        except ServingError as error:
            return error
        return None
