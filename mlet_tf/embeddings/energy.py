"""What the loss gains by each column of each band of a table, predicted without running the model.

A change `delta` of an embedding changes the logloss of a row by about

    residual * (J . delta) + (J . delta)^2 * p (1 - p) / 2,    J = d logit / d e,    residual = p - label

On training rows the first term is zero on average. The second one is a quadratic form in the Fisher metric
`G = E[p (1 - p) J J^T]` of the feature, of which a few thousand rows are enough; summed over the rows of a table, each
as often as it occurs, it is the energy of a column. On rows that the model was not trained on the first term tells how
much of it was learned by heart: the energy of each band is scaled to what both terms say of dropping the band there.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import keras  # noqa: F401  # First: loading it registers layers that are made of the modules below.
import numpy as np

from mlet_tf.embeddings.column_codes import NARROW_BITS, WIDE_BITS, fit_scales
from mlet_tf.embeddings.fitting import Basis, TrainedTable
from mlet_tf.layers.factorization import BLOCK_ROWS

SAMPLE_ROWS = 16_384
_HEAD_ROWS = 1024  # The first ids of a band occur most often: all of them are in its sample.
_RIDGE = 1e-6
_TINY = 1e-30
_FACTORS = (0.01, 10.0)


@dataclasses.dataclass(frozen=True, eq=False)
class TableGradients:
    """How the predictions of a sample of log rows depend on what they read from one table.

    A log row may read several ids of a table, or none.

    Attributes:
        ids: What is read, int `[m]`.
        embeddings: float32 `[m, d]`.
        jacobian: Derivative of the logit by them, float32 `[m, d]`.
        ctr: Predicted click probability of the log row, `[m]`.
        label: Its label, `[m]`.
        rows: Log rows of the sample.
    """

    ids: np.ndarray
    embeddings: np.ndarray
    jacobian: np.ndarray
    ctr: np.ndarray
    label: np.ndarray
    rows: int

    @functools.cached_property
    def curvature(self) -> np.ndarray:
        """Second derivative of the logloss by the logit, float64 `[m]`."""
        ctr = self.ctr.astype("float64")
        return ctr * (1 - ctr)

    def metric(self) -> np.ndarray:
        """Returns the Fisher metric of a log row, float64 `[d, d]`."""
        jacobian = self.jacobian.astype("float64")
        return (jacobian.T * self.curvature) @ jacobian / max(1, self.rows)


@dataclasses.dataclass(frozen=True, eq=False)
class BandEnergy:
    """What the columns of a band are worth, in logloss a row.

    Attributes:
        ids: Ids of the band, the tail of a feature's first band apart.
        tail: Ids of that tail.
        mean: Mean row `[d]`.
        columns: Loss without each column, `[d]`.
        sample: Coefficients of some rows, float64 `[n, d]`.
        weights: How much of the loss a square of a coefficient of each of them is, `[n]`.
        shares: How many ids each of them stands for, `[n]`; 0 for the tail.
    """

    ids: int
    tail: int
    mean: np.ndarray
    columns: np.ndarray
    sample: np.ndarray
    weights: np.ndarray
    shares: np.ndarray

    def scaled(self, factor: float) -> "BandEnergy":
        """The band with another worth."""
        return dataclasses.replace(self, columns=self.columns * factor, weights=self.weights * factor)

    @functools.cached_property
    def row_ranges(self) -> np.ndarray:
        """Weighted sum of the squared range of the first columns of a row, by their number, `[d + 1]`."""
        low = np.minimum.accumulate(self.sample, axis=1)
        high = np.maximum.accumulate(self.sample, axis=1)
        return np.concatenate([[0.0], self.weights @ np.square(high - low)])

    def code_noise(self, bits: int) -> np.ndarray:
        """Loss by coding each column, `[d]`, see `column_codes`."""
        return self._code_noises[bits]

    def lost_by_sharing(self, address: str, rows: int) -> np.ndarray:
        """Loss in each column, `[d]`, where so many rows serve all ids of the band.

        Args:
            address: `hash`, or `bitmap` which keeps the rows that matter most and the mean of the others.
            rows: Rows.
        """
        key = (address, rows)
        if key not in self._shared:
            lost = self._bitmap_loss if address == "bitmap" else self._hash_loss
            self._shared[key] = lost(rows)
        return self._shared[key]

    @functools.cached_property
    def _shared(self) -> dict[tuple[str, int], np.ndarray]:
        return {}

    @functools.cached_property
    def _code_noises(self) -> dict[int, np.ndarray]:
        return {bits: fit_scales(self.sample, self.weights, bits)[1] for bits in (NARROW_BITS, WIDE_BITS)}

    def _bitmap_loss(self, rows: int) -> np.ndarray:
        squares = np.square(self.sample[self._known])
        weights, shares = self.weights[self._known], self.shares[self._known]
        order = np.argsort(-(weights * squares.sum(axis=1) / shares), kind="stable")
        dropped = order[np.cumsum(shares[order]) > rows]
        return weights[dropped] @ squares[dropped]

    def _hash_loss(self, rows: int) -> np.ndarray:
        """Variance inside the buckets of ids drawn like those of the band."""
        coefficients = self.sample[self._known]
        shares = self.shares[self._known]
        weights = self.weights[self._known] / shares
        buckets = max(1, round(len(weights) * rows / max(1, self.ids)))
        bucket = np.random.default_rng(rows).integers(0, buckets, len(weights))
        mass = np.bincount(bucket, weights, buckets) + _TINY
        within = np.empty(coefficients.shape[1])
        for column, values in enumerate(coefficients.T):
            means = np.bincount(bucket, weights * values, buckets) / mass
            within[column] = (weights * shares) @ np.square(values - means[bucket])
        return within

    @property
    def _known(self) -> np.ndarray:
        return self.shares > 0


@dataclasses.dataclass(frozen=True, eq=False)
class TableEnergy:
    """What the columns of a table are worth.

    Attributes:
        name: Its name.
        rows: All its ids V.
        tail: Ids at the end that belong to the first band.
        stops: First id after each band.
        basis: Its columns; a squared coefficient is twice a loss.
        bands: The bands.
    """

    name: str
    rows: int
    tail: int
    stops: tuple[int, ...]
    basis: Basis
    bands: tuple[BandEnergy, ...]


def measure_table(
    table: TrainedTable,
    metric: np.ndarray,
    stops: Sequence[int],
    tail: int = 0,
    block_rows: int = BLOCK_ROWS,
) -> TableEnergy:
    """Measures a table in one pass over its rows.

    Args:
        table: The table.
        metric: `[d, d]`, such as `TableGradients.metric()`.
        stops: First id after each band, see `cut_bands`.
        tail: Ids after the last band; they are measured with the first one.
        block_rows: Rows in memory at once.
    """
    log_rows = table.rows if table.counts is None else max(1, int(table.counts.sum()))
    bands = []
    for low, high in itertools.pairwise((0, *stops)):
        bands.append(_BandSums(len(metric)))
        bands[-1].add_band(table, low, high, block_rows)
    bands[0].add_tail(table, stops[-1], stops[-1] + tail, block_rows)
    root, inverse = _roots(metric)
    moment = root @ sum(band.moment for band in bands) @ root
    vectors = np.linalg.eigh((moment + moment.T) / 2)[1][:, ::-1]
    basis = Basis(root @ vectors, vectors.T @ inverse)
    return TableEnergy(
        table.name,
        table.rows,
        tail,
        tuple(stops),
        basis,
        tuple(band.energy(basis, log_rows) for band in bands),
    )


def with_held_out_gains(
    tables: Sequence[TableEnergy], gradients: Sequence[TableGradients]
) -> list[TableEnergy]:
    """Scales the worth of each band to what rows say that the model was not trained on.

    Ids that training has seen a few times carry much noise beside what they have learned, so that a model without
    them may even be better. A ratio that the rows do not tell from one stays near one.

    Args:
        tables: Measured in the metric of training rows.
        gradients: Of each table, from rows that the model was not trained on.
    """
    return [
        dataclasses.replace(
            table,
            bands=tuple(
                band.scaled(_factor(table, number, held_out)) for number, band in enumerate(table.bands)
            ),
        )
        for table, held_out in zip(tables, gradients, strict=True)
    ]


def _factor(table: TableEnergy, number: int, gradients: TableGradients) -> float:
    band, expected = table.bands[number], table.bands[number].columns.sum()
    inside = (np.searchsorted(table.stops, gradients.ids, side="right") % len(table.stops)) == number
    if expected <= 0 or not inside.any():
        return 1.0
    change = np.einsum("md,md->m", gradients.jacobian, band.mean - gradients.embeddings)
    residual = gradients.ctr.astype("float64") - gradients.label
    losses = np.where(inside, residual * change + gradients.curvature * change**2 / 2, 0.0)
    rows = gradients.rows
    mean = losses.sum() / rows
    difference, variance = mean - expected, (np.square(losses).sum() / rows - mean**2) / rows
    # Positive-part shrinkage of the difference by what chance alone would make.
    certain = max(0.0, 1 - variance / max(difference**2, _TINY))
    return float(np.clip(1 + certain * difference / expected, *_FACTORS))


class _BandSums:
    """Sums over the rows of a band, and a sample of its rows."""

    def __init__(self, width: int) -> None:
        self.total, self.sum, self.square = 0.0, np.zeros(width), np.zeros((width, width))
        self.ids = self.tail = 0
        self._sample: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add_band(self, table: TrainedTable, low: int, high: int, block_rows: int) -> None:
        """Adds the rows of a band: the first ones are in the sample, of the others some, evenly spread."""
        self.ids = high - low
        picked, shares = np.arange(low, high), np.ones(self.ids)
        if self.ids > SAMPLE_ROWS:
            others = SAMPLE_ROWS - _HEAD_ROWS
            rest = np.linspace(low + _HEAD_ROWS, high, others, endpoint=False).astype("int64")
            picked = np.concatenate([picked[:_HEAD_ROWS], rest])
            shares = np.ones(len(picked))
            shares[_HEAD_ROWS:] = (self.ids - _HEAD_ROWS) / others
        self._add(table, low, high, picked, shares, block_rows)

    def add_tail(self, table: TrainedTable, low: int, high: int, block_rows: int) -> None:
        """Adds the rows of the feature's tail."""
        self.tail = high - low
        self._add(table, low, high, np.arange(low, high), np.zeros(self.tail), block_rows)

    @property
    def mean(self) -> np.ndarray:
        return self.sum / max(self.total, _TINY)

    @property
    def moment(self) -> np.ndarray:
        """Weighted second moment around the mean."""
        return self.square - self.total * np.outer(self.mean, self.mean)

    def energy(self, basis: Basis, log_rows: int) -> BandEnergy:
        """What the columns of the band are worth in a basis."""
        width = len(self.sum)
        columns = np.einsum("ij,ik,kj->j", basis.encode, self.moment, basis.encode) / 2 / log_rows
        columns = np.maximum(columns, 0.0)
        rows, mass, shares = (
            map(np.concatenate, zip(*self._sample, strict=True)) if self._sample else _NOTHING
        )
        sample = (rows.reshape(-1, width) - self.mean) @ basis.encode
        weights = mass / 2 / log_rows
        told = (weights @ np.square(sample)).sum()
        if told > 0:  # The sample is to tell the same of all columns together as the whole band.
            weights = weights * columns.sum() / told
        return BandEnergy(self.ids, self.tail, self.mean, columns, sample, weights, shares)

    def _add(
        self,
        table: TrainedTable,
        low: int,
        high: int,
        picked: np.ndarray,
        shares: np.ndarray,
        block_rows: int,
    ) -> None:
        for start in range(low, high, block_rows):
            stop = min(start + block_rows, high)
            rows, weights = table.read(start, stop).astype("float64"), table.weights(start, stop)
            self.total += weights.sum()
            self.sum += weights @ rows
            self.square += (rows.T * weights) @ rows
            inside = slice(*np.searchsorted(picked, [start, stop]))
            chosen = picked[inside] - start
            stands_for = np.maximum(shares[inside], 1)
            self._sample.append((rows[chosen], weights[chosen] * stands_for, shares[inside]))


_NOTHING = (np.zeros(0), np.zeros(0), np.zeros(0))


def _roots(metric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Square root of a metric, made regular, and its inverse."""
    width = len(metric)
    ridge = max(_RIDGE * np.trace(metric) / width, _TINY)
    values, vectors = np.linalg.eigh(metric + ridge * np.eye(width))
    values = np.sqrt(np.maximum(values, ridge))
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
