"""Where a feature's ids are cut into bands by how often they occur."""

from collections.abc import Sequence

import numpy as np

THRESHOLDS = (1000, 100, 10, 2)


def cut_bands(
    counts: np.ndarray,
    tail: int = 0,
    thresholds: Sequence[int] = THRESHOLDS,
    most: int = 3,
    min_rows: int = 64,
) -> tuple[int, ...]:
    """Cuts ids into bands of those that occur about as often.

    A band begins where a count falls below one of the thresholds, which are the same for all features. Every band
    has a mean row and settings of its own, so there are few of them: the cut between the two neighbours with the
    fewest ids goes first.

    Args:
        counts: How often each id occurs in training, `[V]`, in the order of ids.
        tail: Ids at the end, OOV and missing, that belong to no band.
        thresholds: Falling counts.
        most: Bands at most.
        min_rows: Ids of a band at least, where there are several.

    Returns:
        First id after each band, rising; the last is `V - tail`. One band where the ids are not in falling order of
        their counts, since a band is a range of ids.
    """
    known = np.asarray(counts)[: len(counts) - tail]
    if np.any(known[1:] > known[:-1]):
        return (len(known),)
    stops = [0]
    for threshold in thresholds:
        # Counts fall, so their negatives rise.
        stop = int(np.searchsorted(-known, -threshold, side="right"))
        if min(stop - stops[-1], len(known) - stop) >= min_rows:
            stops.append(stop)
    stops.append(len(known))
    while len(stops) - 1 > most:
        joined = [stops[i + 1] - stops[i - 1] for i in range(1, len(stops) - 1)]
        del stops[1 + int(np.argmin(joined))]
    return tuple(stops[1:])
