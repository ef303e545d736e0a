"""From ids to rows, alike in numpy and on all backends: hashes, and bitmaps of the ids that have a row."""

import itertools

import numpy as np
from keras import ops

from mlet_tf.embeddings.plan import BITMAP_IDS, HASH_PRIME
from mlet_tf.layers.backend import gather_rows, on_tensorflow
from mlet_tf.types import Tensor

_PLACES = np.arange(BITMAP_IDS, dtype="uint64")
_OWN = (np.uint64(1) << _PLACES).view("int64")  # For each place in an entry its bit, and those below it.
_BELOW = ((np.uint64(1) << _PLACES) - np.uint64(1)).view("int64")


def bucket_ranges(rows: int, probes: int) -> list[tuple[int, int]]:
    """First row and number of rows of each of several hashes that share `rows` rows."""
    bounds = [rows * probe // probes for probe in range(probes + 1)]
    return [(low, high - low) for low, high in itertools.pairwise(bounds)]


def hashed(ids: Tensor, multiplier: Tensor, offset: Tensor, buckets: Tensor) -> Tensor:
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
        The bits, int64 `[entries]`, and the row of the first kept id of each entry, int32 `[entries]`.
    """
    entries = -(-len(kept) // BITMAP_IDS)
    padded = np.zeros(entries * BITMAP_IDS, bool)
    padded[: len(kept)] = kept
    bits = padded.reshape(entries, BITMAP_IDS)
    counts = bits.sum(axis=1)
    ranks = first_row + np.cumsum(counts) - counts
    words = np.packbits(bits, axis=1, bitorder="little").view("<i8")[:, 0]
    return words.astype("int64"), ranks.astype("int32")


def ranked(positions: Tensor, bits: Tensor, ranks: Tensor, first_entry: Tensor) -> tuple[Tensor, Tensor]:
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
    below = ops.bitwise_and(words, gather_rows(ops.convert_to_tensor(_BELOW), place))
    kept = ops.bitwise_and(words, gather_rows(ops.convert_to_tensor(_OWN), place)) != 0
    rows = gather_rows(ranks, entry) + _set_bits(below)
    return ops.where(kept, rows, ops.zeros_like(rows)), kept


def _set_bits(words: Tensor) -> Tensor:
    """Number of set bits of non-negative int64, int32."""
    if on_tensorflow():
        import tensorflow as tf

        return tf.cast(tf.raw_ops.PopulationCount(x=words), tf.int32)
    # Sums of neighbouring pairs of bits, then of fours, of bytes, of all bytes.
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ops.cast((words * 0x0101010101010101) >> 56, "int32")
