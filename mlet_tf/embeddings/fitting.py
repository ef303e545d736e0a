"""From trained float tables to the rows of a plan, in blocks of rows."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from mlet_tf.embeddings._layout import Place
from mlet_tf.embeddings._stores import Rows
from mlet_tf.embeddings.addresses import bucket_ranges, hashed, make_bitmap
from mlet_tf.embeddings.banded_table import BandedTable
from mlet_tf.layers.factorization import BLOCK_ROWS

_SWEEPS = 4  # Over the hashes of a band with several: each is fitted to what the others leave.


@dataclasses.dataclass(frozen=True, eq=False)
class Basis:
    """Columns of a table, most useful first.

    Attributes:
        encode: float64 `[d, d]`: the first n columns of `E @ encode` are kept.
        decode: float64 `[d, d]`, its inverse: the first n rows turn them back.
    """

    encode: np.ndarray
    decode: np.ndarray

    @classmethod
    def principal(cls, moment: np.ndarray) -> "Basis":
        """The basis in which n columns keep most of a second moment, `[d, d]`."""
        vectors = np.linalg.eigh(moment)[1][:, ::-1]
        return cls(vectors, vectors.T)


@dataclasses.dataclass(frozen=True)
class TrainedTable:
    """A table that is to be written in another form.

    Attributes:
        name: Name of the table, for messages.
        rows: `V`.
        read: Returns rows `low ... high - 1`, float `[high - low, d]`, finite.
        counts: How often each row occurs in training, `[V]`; None takes all alike.
        basis: Its columns, for a table of which some are dropped; None takes the principal ones.
    """

    name: str
    rows: int
    read: Callable[[int, int], np.ndarray]
    counts: np.ndarray | None = None
    basis: Basis | None = None

    def weights(self, low: int, high: int) -> np.ndarray:
        """How much the rows `low ... high - 1` matter, float64; those that never occurred as if they had once."""
        if self.counts is None:
            return np.ones(high - low)
        return np.maximum(self.counts[low:high], 1).astype("float64")

    def blocks(self, low: int, high: int, block_rows: int) -> Iterator[np.ndarray]:
        """Yields the rows `low ... high - 1` in blocks."""
        for start in range(low, high, block_rows):
            yield self.read(start, min(start + block_rows, high))


def write_tables(target: BandedTable, tables: Sequence[TrainedTable], block_rows: int = BLOCK_ROWS) -> None:
    """Writes trained tables in the form of a plan.

    Args:
        target: The built layer that gets them.
        tables: One for each feature of the plan.
        block_rows: Rows that are in memory at once.

    Raises:
        InputError: A value is not finite, or too large for float16.
    """
    for feature, table in enumerate(tables):
        places = target.places(feature)
        bands = [_Band(table, place, block_rows) for place in places]
        if places[0].mean is not None:
            means, basis = _centre(bands, target.plan.output_dim)
            width = target.plan.features[feature].width
            for band, mean in zip(bands, means, strict=True):
                band.centre(mean, basis.encode)
            target.write_projection(feature, basis.decode[:width].astype("float32"), means.astype("float32"))
        for band in bands:
            _write_band(target, band)


class _Band:
    """Ids of a band, and of the tail for the first one, with their trained rows."""

    def __init__(self, table: TrainedTable, place: Place, block_rows: int) -> None:
        self.table, self.place, self._block_rows = table, place, block_rows
        self.low = place.start - place.first_id
        self.high = self.low + place.ids
        self._mean: np.ndarray | float = 0.0
        self._encode: np.ndarray | None = None

    @property
    def weights(self) -> np.ndarray:
        """How much each id of the band matters, without the tail."""
        return self.table.weights(self.low, self.high)

    @property
    def tail_weights(self) -> np.ndarray:
        """The same for the tail."""
        return self.table.weights(self.table.rows - self.place.tail_ids, self.table.rows)

    def centre(self, mean: np.ndarray, encode: np.ndarray) -> None:
        """Makes the rows coefficients around a mean."""
        self._mean, self._encode = mean, encode[:, : self.place.band.width]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yields the rows of the band in blocks, as they are stored."""
        return map(self._encoded, self.table.blocks(self.low, self.high, self._block_rows))

    def tail_blocks(self) -> Iterator[np.ndarray]:
        """Yields the rows of the tail in blocks, as they are stored."""
        low = self.table.rows - self.place.tail_ids
        return map(self._encoded, self.table.blocks(low, self.table.rows, self._block_rows))

    def _encoded(self, rows: np.ndarray) -> np.ndarray:
        return rows if self._encode is None else (rows - self._mean) @ self._encode


def _centre(bands: Sequence[_Band], width: int) -> tuple[np.ndarray, Basis]:
    """Returns the mean row of each band, tail included, `[bands, d]`, and the basis of the table."""
    means, moment = np.zeros((len(bands), width)), np.zeros((width, width))
    for number, band in enumerate(bands):
        mass, total = 0.0, np.zeros(width)
        for blocks, weights in ((band.blocks, band.weights), (band.tail_blocks, band.tail_weights)):
            low = 0
            for block in blocks():
                w, precise = weights[low : low + len(block)], block.astype("float64")
                mass, total, low = mass + w.sum(), total + w @ precise, low + len(block)
                if band.table.basis is None:
                    moment += (precise.T * w) @ precise
        means[number] = total / mass if mass else 0.0
        moment -= mass * np.outer(means[number], means[number])
    return means, band.table.basis or Basis.principal(moment)


def _write_band(target: BandedTable, band: _Band) -> None:
    place, address = band.place, band.place.band.address
    if not place.band.width:
        return
    blocks, weights = band.blocks, band.weights
    if address == "hash":
        rows, weights = _shared_rows(band)
        blocks = lambda: iter([rows])  # noqa: E731
    elif address == "bitmap":
        kept = _kept_ids(band)
        target.write_bitmap(place, *make_bitmap(kept, place.row))
        blocks, weights = lambda: _chosen(band.blocks(), kept), weights[kept]

    def all_blocks() -> Iterator[np.ndarray]:
        yield from blocks()
        yield from band.tail_blocks()

    weights = np.concatenate([weights, band.tail_weights])
    target.write_rows(place, Rows(band.table.name, len(weights), all_blocks, weights))


def _kept_ids(band: _Band) -> np.ndarray:
    """Which ids of a band get a row: those whose distance from its mean row weighs most, bool `[ids]`."""
    distance = np.concatenate([np.square(block, dtype="float64").sum(axis=1) for block in band.blocks()])
    order = np.argsort(-distance * band.weights, kind="stable")
    kept = np.zeros(len(order), bool)
    kept[order[: band.place.rows]] = True
    return kept


def _chosen(blocks: Iterator[np.ndarray], kept: np.ndarray) -> Iterator[np.ndarray]:
    low = 0
    for block in blocks:
        yield block[kept[low : low + len(block)]]
        low += len(block)


def _shared_rows(band: _Band) -> tuple[np.ndarray, np.ndarray]:
    """Rows that ids share, float32 `[rows, width]`, nearest to those of the ids, and what they weigh `[rows]`."""
    salts, weights, rows = band.place.band.salts, band.weights, band.place.rows
    ids = np.arange(band.low, band.high, dtype="int64")
    ranges = bucket_ranges(rows, len(salts))
    # [hashes, ids]
    buckets = np.array(
        [low + hashed(ids, *salt, count) for salt, (low, count) in zip(salts, ranges, strict=True)], "int32"
    )
    mass = np.bincount(buckets.ravel(), np.tile(weights, len(salts)), rows)
    shared = np.zeros((rows, band.place.band.width))
    for sweep in range(_SWEEPS if len(salts) > 1 else 1):
        for probe, (first, count) in enumerate(ranges):
            others = [number for number in range(len(salts)) if number != probe]
            sums, low = np.zeros_like(shared), 0
            for block in band.blocks():
                at = slice(low, low + len(block))
                left = (
                    block - sum(shared[buckets[number, at]] for number in others) if sweep or probe else block
                )
                for column, values in enumerate((left * weights[at, None]).T):
                    sums[:, column] += np.bincount(buckets[probe, at], values, rows)
                low += len(block)
            own = slice(first, first + count)
            shared[own] = sums[own] / np.maximum(mass[own], 1e-300)[:, None]
    return shared.astype("float32"), np.maximum(mass, 1e-9)
