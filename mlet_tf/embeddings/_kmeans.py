"""Centroids for product-quantised rows."""

from collections.abc import Callable, Iterator

import numpy as np

from mlet_tf.embeddings.plan import CENTROIDS

_SAMPLE_ROWS = 16_384
_ITERATIONS = 10
_BLOCK_ROWS = 2048


def fit_codebooks(
    blocks: Callable[[], Iterator[np.ndarray]], weights: np.ndarray, parts: int, seed: int = 0
) -> np.ndarray:
    """Makes the centroids of each part of the rows by k-means.

    Rows are weighted by `weights`. Of large tables a sample drawn in proportion to them is used.

    Args:
        blocks: Gives the rows in blocks, float `[n, width]`, top to bottom.
        weights: `[rows]`.
        parts: Number of parts.
        seed: Seed of the sample and of the first centroids.

    Returns:
        float32 `[parts, 256, width / parts]`; centroids that are not needed are zero.
    """
    generator = np.random.default_rng(seed)
    rows, mass = _sample(blocks, weights, generator)
    pieces = np.split(rows, parts, axis=1)
    return np.stack([_k_means(piece, mass, generator) for piece in pieces]).astype("float32")


def assign_codes(rows: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Returns the nearest centroid of each part, uint8 `[n, parts]`, for rows `[n, width]`."""
    pieces = np.split(rows, len(codebooks), axis=1)
    nearest = [_nearest(x, book) for x, book in zip(pieces, codebooks, strict=True)]
    return np.stack(nearest, axis=1).astype("uint8")


def _sample(
    blocks: Callable[[], Iterator[np.ndarray]], weights: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    if len(weights) <= _SAMPLE_ROWS:
        return np.concatenate([np.asarray(block, "float32") for block in blocks()]), weights.astype("float64")
    draws = generator.choice(len(weights), _SAMPLE_ROWS, p=weights / weights.sum())
    ids, mass = np.unique(draws, return_counts=True)
    rows, low = [], 0
    for block in blocks():
        first, last = np.searchsorted(ids, [low, low + len(block)])
        rows.append(np.asarray(block[ids[first:last] - low], "float32"))
        low += len(block)
    return np.concatenate(rows), mass.astype("float64")


def _k_means(rows: np.ndarray, weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Lloyd's algorithm from k-means++, `[256, width]`."""
    centroids = np.zeros((CENTROIDS, rows.shape[1]), "float32")
    first = _first_centroids(rows, weights, generator)
    centroids[: len(first)] = first
    if len(first) < CENTROIDS:
        return centroids  # Each distinct row is one.
    for _ in range(_ITERATIONS):
        codes = _nearest(rows, centroids)
        mass = np.bincount(codes, weights, CENTROIDS)
        sums = np.stack([np.bincount(codes, weights * column, CENTROIDS) for column in rows.T], axis=1)
        used = mass > 0
        centroids[used] = sums[used] / mass[used, None]
    return centroids


def _first_centroids(rows: np.ndarray, weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rows drawn far from each other (k-means++); fewer than 256 where there are no more distinct ones."""
    chosen, distance = [], np.ones(len(rows))
    for _ in range(CENTROIDS):
        chance = np.cumsum(distance * weights)
        if not len(rows) or chance[-1] <= 0:
            break
        chosen.append(int(np.searchsorted(chance, generator.random() * chance[-1], side="right")))
        fresh = np.square(rows - rows[chosen[-1]], dtype="float64").sum(axis=1)
        distance = fresh if len(chosen) == 1 else np.minimum(distance, fresh)
    return rows[chosen]


def _nearest(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Returns the nearest centroid of each row, int64 `[n]`."""
    norms, result = np.square(centroids).sum(axis=1), np.empty(len(rows), np.int64)
    for low in range(0, len(rows), _BLOCK_ROWS):  # Few enough for the distances to stay in the cache.
        block = rows[low : low + _BLOCK_ROWS].astype("float32")
        result[low : low + _BLOCK_ROWS] = (norms - 2 * block @ centroids.T).argmin(axis=1)
    return result
