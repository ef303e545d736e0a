"""From ids to rows, alike in numpy and on all backends: hashes, and bitmaps of the ids that have a row."""

import itertools
from typing import Any

import numpy as np
from keras import ops

from mlet_tf.embeddings.plan import BITMAP_IDS, HASH_PRIME
from mlet_tf.layers.backend import gather_rows, on_tensorflow

# For each position in an entry the bits below it, uint8 [64, 8].
_BELOW = np.packbits(np.tri(BITMAP_IDS, BITMAP_IDS, -1, dtype=bool), axis=1, bitorder="little")
_OWN = np.packbits(np.eye(BITMAP_IDS, dtype=bool), axis=1, bitorder="little")
_BITS = np.array([value.bit_count() for value in range(256)], "int32")


def bucket_ranges(rows: int, probes: int) -> list[tuple[int, int]]:
    """First row and number of rows of each of several hashes that share `rows` rows."""
    bounds = [rows * probe // probes for probe in range(probes + 1)]
    return [(low, high - low) for low, high in itertools.pairwise(bounds)]


def hashed(ids: Any, multiplier: Any, offset: Any, buckets: Any) -> Any:
    """Returns `((a (x + 1) + b) mod (2^31 - 1)) mod M`.

    Args:
        ids: Ids `x` in their feature, below 2^31 - 1: an int64 array or tensor.
        multiplier: `a`, from 1 to 2^31 - 2.
        offset: `b`, from 0 to 2^31 - 2.
        buckets: `M`.
    """
    return (multiplier * (ids + 1) + offset) % HASH_PRIME % buckets


def make_bitmap(kept: np.ndarray, first_row: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes the entries of a bitmap.

    Args:
        kept: Whether an id has a row, bool `[ids]`.
        first_row: Row of the first id that has one.

    Returns:
        The bits, uint8 `[entries, 8]`, and the row of the first kept id of each entry, int32 `[entries]`.
    """
    entries = -(-len(kept) // BITMAP_IDS)
    padded = np.zeros(entries * BITMAP_IDS, bool)
    padded[: len(kept)] = kept
    bits = padded.reshape(entries, BITMAP_IDS)
    counts = bits.sum(axis=1)
    ranks = first_row + np.cumsum(counts) - counts
    return np.packbits(bits, axis=1, bitorder="little"), ranks.astype("int32")


def ranked(positions: Any, bits: Any, ranks: Any, first_entry: Any) -> tuple[Any, Any]:
    """Looks ids up in a bitmap.

    Args:
        positions: Ids in their band, int32 `[n]`.
        bits: See `make_bitmap`.
        ranks: See `make_bitmap`.
        first_entry: First entry of the band.

    Returns:
        The row of each id, int32 `[n]`, and whether it has one, bool `[n]`; the row of an id without is to be ignored.
    """
    entry, place = positions // BITMAP_IDS + first_entry, positions % BITMAP_IDS
    words = gather_rows(bits, entry)
    below = _population(ops.bitwise_and(words, ops.take(ops.convert_to_tensor(_BELOW), place, axis=0)))
    own = _population(ops.bitwise_and(words, ops.take(ops.convert_to_tensor(_OWN), place, axis=0)))
    kept = own > 0
    rows = gather_rows(ranks, entry) + below
    return ops.where(kept, rows, ops.zeros_like(rows)), kept


def _population(words: Any) -> Any:
    """Set bits of each row, int32 `[n]`."""
    if on_tensorflow():
        import tensorflow as tf

        counts = tf.cast(tf.raw_ops.PopulationCount(x=words), tf.int32)
    else:
        counts = ops.take(ops.convert_to_tensor(_BITS), ops.cast(words, "int32"), axis=0)
    return ops.sum(counts, axis=-1)
