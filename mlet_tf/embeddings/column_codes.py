"""Rows of small integers with one scale for each column of a band.

A scale for each row costs four bytes a row, as much as eight int4 values. Coefficients in the basis of a feature,
centred on the mean row of their band, spread alike in all rows of a column, so that a scale for each column does.
"""

from collections.abc import Iterable

import numpy as np

SAMPLE_ROWS = 16_384
WIDE_BITS, NARROW_BITS = 8, 4
# Largest code, in standard deviations of the column: the best one is taken.
_REACHES = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0)
_TINY = 1e-30


def sampled(blocks: Iterable[np.ndarray], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Takes some rows, evenly spread, to choose steps by.

    Args:
        blocks: The rows in blocks, float `[n, width]`.
        weights: How much each row matters, `[rows]`.

    Returns:
        The rows, `[sample, width]`, and their weights.
    """
    picked = np.unique(
        np.linspace(0, len(weights), min(len(weights), SAMPLE_ROWS), endpoint=False, dtype="int64")
    )
    rows, low = [], 0
    for block in blocks:
        inside = slice(*np.searchsorted(picked, [low, low + len(block)]))
        rows.append(block[picked[inside] - low])
        low += len(block)
    return np.concatenate(rows), weights[picked]


def fit_scales(rows: np.ndarray, weights: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the step of each column, so that the squared error is least.

    Args:
        rows: Coefficients, or a sample of them, float `[n, width]`.
        weights: How much each row matters, `[n]`.
        bits: Bits of a code.

    Returns:
        The steps, float32 `[width]`, and the error, the weighted sum of squares of each column, `[width]`.
    """
    rows = rows.astype("float64")
    scales = np.zeros(rows.shape[1], "float32")
    errors = weights @ np.square(rows)  # That of a step of zero.
    if not len(rows):
        return scales, errors
    deviation = np.sqrt(errors / max(weights.sum(), _TINY))
    largest = np.abs(rows).max(axis=0)
    for reach in _REACHES:
        tried = (2 * np.minimum(reach * deviation, largest) / (2**bits - 1)).astype("float32")
        error = weights @ np.square(decoded(encoded(rows, tried, bits), tried, bits) - rows)
        better = error < errors
        scales[better], errors[better] = tried[better], error[better]
    return scales, errors


def encoded(rows: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """Returns the nearest codes, uint8 `[n, width]`."""
    top = 2**bits - 1
    steps = np.divide(rows, scales, out=np.zeros(rows.shape), where=scales > 0)
    return np.clip(np.rint(steps + top / 2), 0, top).astype("uint8")


def decoded(codes: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """Returns the values of codes, float64 `[n, width]`: they lie evenly around zero."""
    return (codes - (2**bits - 1) / 2) * scales.astype("float64")
