"""How large a training is, by arithmetic: rows of tables, weights of MLPs, distinct ids of a batch."""

import dataclasses
import itertools
import math
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is trained.

    Attributes:
        vocabulary: Table rows V of each categorical feature.
        rows: Rows of the training split.
        num_dense: D, width of the dense features.
        output_dim: d.
        hidden_dim: k, None for direct tables.
        direct_threshold: Features with at most this many rows are direct; None means k.
        bottom_units: Widths of the bottom MLP before its last layer.
        top_units: Widths of the top MLP before the logit.
        dot_skip: Whether a linear path leads from the dot products to the logit.
        batch_size: Rows per step, over all workers.
        epochs: Passes over the training split.
        optimizer: Optimizer of the tables.
        shuffle_rows: Size of the shuffle buffer.
    """

    vocabulary: tuple[int, ...]
    rows: int
    num_dense: int
    output_dim: int
    hidden_dim: int | None
    direct_threshold: int | None = None
    bottom_units: tuple[int, ...] = (512, 256)
    top_units: tuple[int, ...] = (512, 256)
    dot_skip: bool = True
    batch_size: int = 512
    epochs: int = 1
    optimizer: str = "adagrad"
    shuffle_rows: int = 65536


def factorised_rows(sizes: Sizes) -> int:
    """Rows of factorised tables."""
    return sum(rows for rows in sizes.vocabulary if _factorised(sizes, rows))


def direct_rows(sizes: Sizes) -> int:
    """Rows of direct tables."""
    return sum(sizes.vocabulary) - factorised_rows(sizes)


def factorised_features(sizes: Sizes) -> int:
    """Number of factorised features."""
    return sum(_factorised(sizes, rows) for rows in sizes.vocabulary)


def _factorised(sizes: Sizes, rows: int) -> bool:
    if sizes.hidden_dim is None:
        return False
    return rows > (sizes.hidden_dim if sizes.direct_threshold is None else sizes.direct_threshold)


def dense_parameters(sizes: Sizes) -> int:
    """Weights and biases of the MLPs and the linear path."""
    return sum(m * n + n for m, n in _layers(sizes)) + sizes.dot_skip * _dot_products(sizes)


def activation_widths(sizes: Sizes) -> int:
    """Activations per row, in floats, embeddings and their products included."""
    features = len(sizes.vocabulary)
    return sum(n for _, n in _layers(sizes)) + features * sizes.output_dim * 2 + (features + 1) ** 2


def _layers(sizes: Sizes) -> list[tuple[int, int]]:
    d = sizes.output_dim
    bottom = [sizes.num_dense, *sizes.bottom_units, d]
    top = [d + _dot_products(sizes), *sizes.top_units, 1]
    return [pair for units in (bottom, top) for pair in itertools.pairwise(units)]


def _dot_products(sizes: Sizes) -> int:
    """Pairs of the embeddings and the bottom MLP's output."""
    return math.comb(len(sizes.vocabulary) + 1, 2)


def touched_rows(sizes: Sizes, zipf: float = 1.1) -> float:
    """Expected number of distinct ids in a batch, over all features."""
    counts: Mapping[int, float] = {
        rows: _distinct(rows, sizes.batch_size, zipf) for rows in set(sizes.vocabulary)
    }
    return sum(counts[rows] for rows in sizes.vocabulary)


def _distinct(rows: int, batch: int, zipf: float) -> float:
    """Expected distinct ids of one feature: ids grow geometrically, those of a step are taken as alike."""
    edges = [1]
    while edges[-1] <= rows:
        edges.append(max(edges[-1] + 1, math.floor(edges[-1] * 1.02)))
    edges[-1] = rows + 1
    groups = list(itertools.pairwise(edges))
    weights = [((low + high - 1) / 2) ** -zipf for low, high in groups]
    total = sum(w * (high - low) for w, (low, high) in zip(weights, groups, strict=True))
    return sum(
        (high - low) * -math.expm1(batch * math.log1p(-min(w / total, 1 - 1e-12)))
        for w, (low, high) in zip(weights, groups, strict=True)
    )
