"""When a request is sent again: exponential back-off with full jitter."""

import random
import time
from dataclasses import dataclass, field

from mlet_tf.serving.transport import ServingError

_LONGEST_PAUSE = 2.0
_MAX_DOUBLINGS = 60  # A higher power would overflow a float.


@dataclass(frozen=True)
class Backoff:
    """Pauses between the attempts of one request.

    A pause is drawn uniformly from 0 to its bound, so that callers refused together do not return together.

    Attributes:
        retries: How often a request is sent again.
        base: Bound of the first pause, in seconds. It doubles with each retry, up to two seconds.
        rng: Where the pauses are drawn from.
    """

    retries: int
    base: float
    rng: random.Random = field(default_factory=random.Random)

    def pause(self, error: ServingError, attempt: int, deadline: float) -> float:
        """Seconds to wait after a failed attempt, the first being number 0.

        Raises:
            ServingError: `error`, where no retry is left, none would help, or the pause would outlast the deadline.
        """
        if not error.retryable or attempt >= self.retries:
            raise error
        bound = min(self.base * 2.0 ** min(attempt, _MAX_DOUBLINGS), _LONGEST_PAUSE)
        seconds = self.rng.uniform(0.0, bound)
        if time.monotonic() + seconds >= deadline:
            raise error
        return seconds
