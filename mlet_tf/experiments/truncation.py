"""Truncates trained tables to fewer columns.

A truncated table is `A @ B` with `A: [V, n]` and `B: [n, d]`: what is served is `A`, and a multiplication with
the small `B` restores the width that the rest of the model expects. That is the form of an MLET table with
`k = n`, so a truncated model is a DLRM with an `EmbeddingCollection` and can be trained on.

How the columns are chosen:

*   `leading`: the first ones, for tables trained by `NestedEmbeddings`.
*   `common`: one rotation for all tables, by the second moments of all rows together. Dot products between
    features survive a common rotation.
*   `per_table`: the best subspace of each table (truncated SVD), rows weighted by how often they occur.
*   `interaction`: the same in the metric in which a change of a row changes its dot products with the other
    vectors of a log row.
*   `allocated`: in the metric of the loss, in which the columns of all tables compete for the bytes. Dot products
    are no common measure: the network behind them may hardly look at those of one feature and live from another's. And
    columns of one table are worth nothing where their partners are dropped, so the metric is measured again midway to
    what was chosen.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from mlet_tf.compression.reads import measure_reads, model_tables
from mlet_tf.compression.rows import LabelledRows
from mlet_tf.embeddings.nested import NestedEmbeddings
from mlet_tf.experiments.tables import embedding_collection
from mlet_tf.features.packed_rows import PackedRows
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature
from mlet_tf.models import DLRM
from mlet_tf.replace import replace_layers

METHODS = ("leading", "common", "per_table", "interaction", "allocated")
_RIDGE = 1e-6
_FISHER_ROWS = 8192
_TINY = 1e-30
_ROUNDS = 3  # Of measuring the metric again.


@dataclass(frozen=True)
class Spectrum:
    """The columns of one table, most useful first.

    Attributes:
        table: `E`, float32 `[V, d]`.
        encode: float64 `[d, d]`: the first n columns of `E @ encode` are `A`.
        decode: float64 `[d, d]`: the first n rows are `B`.
        energy: What each column contributes, `[d]`, falling (but for `leading`).
    """

    table: np.ndarray
    encode: np.ndarray
    decode: np.ndarray
    energy: np.ndarray

    def factors(self, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns `A` `[V, columns]` and `B` `[columns, d]`, float32."""
        kept = self.table @ self.encode[:, :columns]
        return kept.astype("float32"), self.decode[:columns].astype("float32")

    def restored(self, columns: int) -> np.ndarray:
        """Returns `A @ B`, float32 `[V, d]`."""
        kept, decode = self.factors(columns)
        return kept @ decode


def spectra(
    tables: Sequence[np.ndarray],
    counts: Sequence[np.ndarray],
    method: str,
    bottom_moment: np.ndarray | None = None,
    metrics: Sequence[np.ndarray] | None = None,
) -> list[Spectrum]:
    """Orders the columns of each table.

    Args:
        tables: `E` of each feature, `[V, d]`.
        counts: How often each row occurs in training, `[V]` each.
        method: Out of `METHODS`.
        bottom_moment: Second moment `[d, d]` of the bottom MLP's output, which takes part in the dot products; for
            `interaction`.
        metrics: What a change of a row costs, `[d, d]` for each feature; for `allocated`.

    Returns:
        A spectrum for each table.
    """
    width = tables[0].shape[1]
    moments = [_moment(table, count) for table, count in zip(tables, counts, strict=True)]
    if method == "leading":
        eye = np.eye(width)
        return [Spectrum(e, eye, eye, np.diag(m)) for e, m in zip(tables, moments, strict=True)]
    if method == "common":
        vectors = _falling_eigh(functools.reduce(np.add, moments))[1]
        return [
            Spectrum(e, vectors, vectors.T, np.diag(vectors.T @ m @ vectors))
            for e, m in zip(tables, moments, strict=True)
        ]
    if method == "per_table":
        results = []
        for e, m in zip(tables, moments, strict=True):
            energy, vectors = _falling_eigh(m)
            results.append(Spectrum(e, vectors, vectors.T, energy))
        return results
    if method == "interaction":
        total = sum(moments) + (0 if bottom_moment is None else bottom_moment)
        metrics = [total - own for own in moments]
    elif method != "allocated":
        raise ValueError(f"`method` should be one of {METHODS}. Received: {method!r}")
    elif metrics is None:
        raise ValueError("`metrics` should be given for 'allocated'")
    return [_metric_spectrum(*of_table) for of_table in zip(tables, moments, metrics, strict=True)]


@dataclass(frozen=True)
class Candidate:
    """A way to truncate all tables of a model.

    Attributes:
        method: Out of `METHODS`.
        size: Columns of every table; `allocated` has the bytes of so many.
        spectra: The tables.
        columns: Columns kept of each.
    """

    method: str
    size: int
    spectra: list[Spectrum]
    columns: list[int]

    @property
    def values(self) -> int:
        """Number of values that the truncated model stores for its embeddings, `B` included."""
        return sum(map(_values, self.spectra, self.columns))

    def restored(self) -> list[np.ndarray]:
        """Returns the truncated tables, back at their old width."""
        return [s.restored(n) for s, n in zip(self.spectra, self.columns, strict=True)]


Metrics = Callable[[Candidate | None], list[np.ndarray]]


def candidates(
    tables: Sequence[np.ndarray],
    counts: Sequence[np.ndarray],
    sizes: Sequence[int],
    methods: Sequence[str],
    bottom_moment: np.ndarray | None = None,
    metrics: Metrics | None = None,
) -> Iterator[Candidate]:
    """Makes every candidate of some methods and sizes.

    Args:
        tables: See `spectra`.
        counts: See `spectra`.
        sizes: Columns of each table.
        methods: Out of `METHODS`.
        bottom_moment: See `spectra`.
        metrics: For `allocated`, returns what a change of a row costs, `[d, d]` for each feature, given the model or
            midway to a candidate; see `fisher_metrics`.
    """
    for method in methods:
        if method == "allocated":
            if metrics is None:
                raise ValueError("`metrics` should be given for 'allocated'")
            first = metrics(None)
            yield from (_allocated(tables, counts, size, metrics, first) for size in sizes)
            continue
        ordered = spectra(tables, counts, method, bottom_moment)
        for size in sizes:
            yield Candidate(method, size, ordered, uniform_columns(ordered, size))


def _allocated(
    tables: Sequence[np.ndarray],
    counts: Sequence[np.ndarray],
    size: int,
    metrics: Metrics,
    measured: Sequence[np.ndarray],
) -> Candidate:
    for number in range(_ROUNDS + 1):
        ordered = spectra(tables, counts, "allocated", metrics=measured)
        values = sum(map(_values, ordered, uniform_columns(ordered, size)))
        candidate = Candidate("allocated", size, ordered, allocate_columns(ordered, values))
        if number < _ROUNDS:
            midway = metrics(candidate)
            # Averaged, or two tables would take turns.
            measured = midway if number == 0 else [(x + y) / 2 for x, y in zip(measured, midway, strict=True)]
    return candidate


def uniform_columns(tables: Sequence[Spectrum], columns: int) -> list[int]:
    """`columns` for each table; all of them for a table that would not get smaller."""
    return [columns if _is_smaller(s, columns) else s.table.shape[1] for s in tables]


def allocate_columns(tables: Sequence[Spectrum], values: int) -> list[int]:
    """Spends a budget on the columns that contribute most for their size.

    Args:
        tables: Their `energy` must be comparable between tables, as that of `allocated` is.
        values: Budget: number of values of all `A` and `B` together.

    Returns:
        Columns of each table, at least one; all of them for a table that would not get smaller.
    """
    columns = uniform_columns(tables, 1)
    left = values - sum(map(_values, tables, columns))
    gains = sorted(
        (
            (s.energy[j] / sum(s.table.shape), -j, i)
            for i, s in enumerate(tables)
            for j in range(1, len(s.energy))
        ),
        reverse=True,
    )
    for gain, position, i in gains:
        if gain <= 0 or -position != columns[i]:
            continue
        (more,) = uniform_columns([tables[i]], columns[i] + 1)
        price = _values(tables[i], more) - _values(tables[i], columns[i])
        if price <= left:
            columns[i], left = more, left - price
    return columns


def _values(spectrum: Spectrum, columns: int) -> int:
    """Numbers of `A` and `B`, or of a table that keeps all columns."""
    rows, width = spectrum.table.shape
    return columns * (rows + width) if columns < width else rows * width


def _is_smaller(spectrum: Spectrum, columns: int) -> bool:
    return columns * sum(spectrum.table.shape) < spectrum.table.size


def bottom_moment(model: DLRM, dense_features: np.ndarray) -> np.ndarray:
    """Returns the second moment `[d, d]` of the bottom MLP's output."""
    outputs = np.asarray(model.bottom_stack(dense_features), "float64")
    return outputs.T @ outputs / len(outputs)


def fisher_metrics(
    model: DLRM, rows: PackedRows, candidate: Candidate | None = None, seed: int = 0
) -> list[np.ndarray]:
    """Returns what a change of a feature's embeddings costs in logloss, `[d, d]` for each feature.

    Args:
        model: The trained model.
        rows: Rows to draw some thousands from; their labels do not matter.
        candidate: The metric is that midway from the model's tables to those of the candidate.
        seed: Draws the rows.
    """
    sample = LabelledRows.packed(rows).sample(_FISHER_ROWS, seed)
    other = None if candidate is None else _narrow_collection(embedding_collection(model), candidate)
    return [table.metric() for table in measure_reads(model, model_tables(model), sample, other)]


def truncated_model(model: DLRM, candidate: Candidate) -> DLRM:
    """Makes the DLRM with truncated tables.

    Args:
        model: The trained model; it is not touched.
        candidate: What to keep of its tables.

    Returns:
        A new model, not compiled. Its collection is of the form `A @ B` and should be served as it is: collapsing
        it would restore the width.
    """
    collection = embedding_collection(model)
    narrow = _narrow_collection(collection, candidate)

    def narrower(layer: keras.layers.Layer) -> keras.layers.Layer | None:
        nested = isinstance(layer, NestedEmbeddings) and layer.embeddings is collection
        return narrow if layer is collection or nested else None

    return replace_layers(model, narrower)


def _narrow_collection(collection: EmbeddingCollection, candidate: Candidate) -> EmbeddingCollection:
    width = collection.output_dim
    features = [
        EmbeddingFeature(feature.name, feature.input_dim, hidden_dim=int(n) if n < width else 0)
        for feature, n in zip(collection.features, candidate.columns, strict=True)
    ]
    narrow = EmbeddingCollection(
        features, width, direct_threshold=0, dtype=collection.dtype_policy, name=collection.name
    )
    narrow.build()
    for feature, spectrum, n in zip(features, candidate.spectra, candidate.columns, strict=True):
        if feature.hidden_dim:
            kept, decode = spectrum.factors(n)
            narrow.assign_factors(feature.name, kept, [decode])
        else:
            narrow.assign_factors(feature.name, spectrum.table)
    return narrow


def _moment(table: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Second moment `[d, d]` of a table's rows as the log shows them."""
    weights = counts / max(1, counts.sum())
    return (table.T * weights) @ table.astype("float64")


def _metric_spectrum(table: np.ndarray, own: np.ndarray, metric: np.ndarray) -> Spectrum:
    ridge = max(_RIDGE * np.trace(metric) / len(metric), _TINY)
    values, vectors = np.linalg.eigh(metric + ridge * np.eye(len(metric)))
    values = np.maximum(values, ridge)
    root, inverse = (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T
    energy, basis = _falling_eigh(root @ own @ root)
    return Spectrum(table, root @ basis, basis.T @ inverse, energy)


def _falling_eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(matrix)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]
