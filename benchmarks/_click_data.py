"""Click data of Criteo's shape: 13 numbers, 26 categorical features, Zipf-distributed ids."""

import numpy as np

NUM_DENSE = 13
ZIPF_EXPONENT = 1.1

# Distinct values of the 26 categorical columns of the Criteo-Kaggle log.
_VOCABULARIES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip


def vocabulary_sizes(total: int) -> list[int]:
    """Returns 26 sizes which sum to about `total`: Criteo's, the largest ones cut to the same size."""
    low, high = 1, max(_VOCABULARIES)
    while low < high:
        cap = (low + high + 1) // 2
        low, high = (cap, high) if sum(min(v, cap) for v in _VOCABULARIES) <= total else (low, cap - 1)
    return [min(v, low) for v in _VOCABULARIES]


def batches(sizes: list[int], batch: int, count: int, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    """Returns batches of (dense [B, 13] float32, ids [B, 26] int64, labels [B] float32)."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.lognormal(size=(batch, NUM_DENSE)).astype("float32"),
            np.stack([zipf(rng, size, batch) for size in sizes], axis=1),
            (rng.random(batch) < 0.25).astype("float32"),
        )
        for _ in range(count)
    ]


def zipf(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Draws ids below `size`, id i with a density like (i + 1) ** -ZIPF_EXPONENT."""
    power = 1 - ZIPF_EXPONENT
    ranks = (1 - rng.random(count) * (1 - (size + 1) ** power)) ** (1 / power)
    return np.minimum(ranks.astype("int64") - 1, size - 1)
