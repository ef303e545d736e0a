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
*   `allocated`: as `interaction`, but the columns of all tables compete for the bytes, so that each table gets as
    many as its spectrum deserves.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from mlet_tf.embeddings.nested import NestedEmbeddings
from mlet_tf.experiments.tables import embedding_collection
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature
from mlet_tf.models import DLRM
from mlet_tf.replace import replace_layers

METHODS = ("leading", "common", "per_table", "interaction", "allocated")
_RIDGE = 1e-6


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
) -> list[Spectrum]:
    """Orders the columns of each table.

    Args:
        tables: `E` of each feature, `[V, d]`.
        counts: How often each row occurs in training, `[V]` each.
        method: Out of `METHODS`, `allocated` excepted.
        bottom_moment: Second moment `[d, d]` of the bottom MLP's output, which takes part in the dot products; for
            `interaction`.

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
    if method != "interaction":
        raise ValueError(f"`method` should be one of {METHODS[:-1]}. Received: {method!r}")
    total = sum(moments) + (0 if bottom_moment is None else bottom_moment)
    return [_interaction_spectrum(e, own, total - own) for e, own in zip(tables, moments, strict=True)]


@dataclass(frozen=True)
class Candidate:
    """A way to truncate all tables of a model.

    Attributes:
        method: Out of `METHODS`.
        size: Columns of every table, for `allocated` their average over the rows.
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
        return sum(
            n * sum(s.table.shape) if n < s.table.shape[1] else s.table.size
            for s, n in zip(self.spectra, self.columns, strict=True)
        )

    def restored(self) -> list[np.ndarray]:
        """Returns the truncated tables, back at their old width."""
        return [s.restored(n) for s, n in zip(self.spectra, self.columns, strict=True)]


def candidates(
    tables: Sequence[np.ndarray],
    counts: Sequence[np.ndarray],
    sizes: Sequence[int],
    methods: Sequence[str],
    bottom_moment: np.ndarray | None = None,
) -> Iterator[Candidate]:
    """Makes every candidate of some methods and sizes; see `spectra` for the arguments."""
    rows = sum(map(len, tables))
    for method in methods:
        ordered = spectra(tables, counts, "interaction" if method == "allocated" else method, bottom_moment)
        for size in sizes:
            if method == "allocated":
                columns = allocate_columns(ordered, rows * size)
            else:
                columns = uniform_columns(ordered, size)
            yield Candidate(method, size, ordered, columns)


def uniform_columns(tables: Sequence[Spectrum], columns: int) -> list[int]:
    """`columns` for each table; all of them for a table that would not get smaller."""
    return [columns if _is_smaller(s, columns) else s.table.shape[1] for s in tables]


def allocate_columns(tables: Sequence[Spectrum], values: int) -> list[int]:
    """Spends a budget on the columns that contribute most for their size.

    Args:
        tables: Their `energy` must be comparable between tables, as that of `interaction` is.
        values: Budget: number of values of all `A` together.

    Returns:
        Columns of each table, at least one; all of them for a table that would not get smaller.
    """
    columns = [1] * len(tables)
    left = values - sum(len(s.table) for s in tables)
    gains = sorted(
        ((s.energy[j] / len(s.table), -j, i) for i, s in enumerate(tables) for j in range(1, len(s.energy))),
        reverse=True,
    )
    for gain, position, i in gains:
        if gain > 0 and -position == columns[i] and len(tables[i].table) <= left:
            columns[i] += 1
            left -= len(tables[i].table)
    return [n if _is_smaller(s, n) else s.table.shape[1] for s, n in zip(tables, columns, strict=True)]


def _is_smaller(spectrum: Spectrum, columns: int) -> bool:
    return columns * sum(spectrum.table.shape) < spectrum.table.size


def bottom_moment(model: DLRM, dense_features: np.ndarray) -> np.ndarray:
    """Returns the second moment `[d, d]` of the bottom MLP's output."""
    outputs = np.asarray(model.bottom_stack(dense_features), "float64")
    return outputs.T @ outputs / len(outputs)


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


def _interaction_spectrum(table: np.ndarray, own: np.ndarray, others: np.ndarray) -> Spectrum:
    ridge = _RIDGE * np.trace(others) / len(others)
    values, vectors = np.linalg.eigh(others + ridge * np.eye(len(others)))
    root, inverse = (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T
    energy, basis = _falling_eigh(root @ own @ root)
    return Spectrum(table, root @ basis, basis.T @ inverse, energy)


def _falling_eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(matrix)
    return np.maximum(values[::-1], 0), vectors[:, ::-1]
