"""Compression of any Keras model (TensorFlow)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlet_tf.embeddings.plan import Budget, RowStatistics
from mlet_tf.errors import InputError
from mlet_tf.names import COMPRESSION_METHODS

if TYPE_CHECKING:
    import keras

    from mlet_tf.compression.report import CompressionReport
    from mlet_tf.compression.rows import LabelledRows

SAMPLE_ROWS = 8192  # Rows that metrics and gains are measured on.


@dataclasses.dataclass(frozen=True, eq=False)
class Compression:
    """A compressed model.

    Attributes:
        model: The model; its tables cannot be trained further.
        report: Sizes tried and what was chosen, table by table; plain values for JSON.
    """

    model: keras.Model
    report: CompressionReport


def compress_model(
    model: keras.Model,
    data: Any,
    budget: Budget | Mapping[str, float],
    *,
    validation_data: Any = None,
    methods: Sequence[str] = COMPRESSION_METHODS,
    seed: int = 0,
    note: Callable[[str], None] | None = None,
) -> Compression:
    """Makes the smallest model within a budget.

    Each table, multiplied out where it is a product, gets the columns, bits and rows that save most loss for their
    bytes, and is replaced by a layer that serves them: `keras.layers.Embedding` and `MLETEmbedding` by a `ServedTable`,
    `EmbeddingCollection` by a `ServedEmbedding`, wherever they are in the model. A SavedModel of the result has stock
    TensorFlow operations only. The given model is not changed.

    Args:
        model: A functional, Sequential or subclassed model that gives click probabilities, `[B]` or `[B, 1]`, each
            from its own row alone, and looks up ids of each row: not those of positions, say, that all rows share.
        data: Rows that the model was trained on, `(inputs, label)` or a `tf.data.Dataset` of batches of them: they tell
            how often ids occur and how much predictions depend on them.
        budget: A `Budget`, or a dict with `max_auc_drop`, `bytes` or `ratio`.
        validation_data: Rows that the model was not trained on. Half of them, at most 8,192, tell what rare ids have
            learned by heart; a budget of `max_auc_drop` is measured on the others: the drop and its standard error
            together keep to it. Do not judge the result on the same rows.
        methods: What may be saved, out of `columns`, `bits` and `rows`.
        seed: Draws rows, and the hashes of ids that share rows.
        note: Called with a line about each size that is tried.

    Returns:
        The model and the report.

    Raises:
        InputError: The budget cannot be met (the message names the smallest size), or an argument or a layer is not of
            a kind that can be compressed.
        ValueError: The model cannot be rebuilt from its configuration.

    Example:
        >>> found = compress_model(model, (x, y), {"max_auc_drop": 0.0005}, validation_data=(x_val, y_val))
        >>> found.model.save("small.keras")
    """
    from mlet_tf.compression.rows import LabelledRows

    budget = budget if isinstance(budget, Budget) else _budget(budget)
    train = LabelledRows.of(data, "data")
    held_out = None if validation_data is None else LabelledRows.of(validation_data, "validation_data")
    return compress_rows(model, train, held_out, budget, methods=methods, seed=seed, note=note or _silent)


def compress_rows(
    model: keras.Model,
    train: LabelledRows,
    choosing: LabelledRows | None,
    budget: Budget,
    *,
    methods: Sequence[str],
    seed: int = 0,
    note: Callable[[str], None],
    statistics: RowStatistics | None = None,
    memory: Path | None = None,
) -> Compression:
    """Compresses a model, see `compress_model`.

    Args:
        model: The model.
        train: Rows that it was trained on.
        choosing: Rows that it was not trained on, or None.
        budget: What it may cost.
        methods: See `compress_model`.
        seed: See `compress_model`.
        note: See `compress_model`.
        statistics: How often ids occur, where it is known; without, the model runs over `train` to count them.
        memory: File in which scores are kept, so that an interrupted search goes on.
    """
    from mlet_tf.compression import reads
    from mlet_tf.compression.report import make_report
    from mlet_tf.compression.search import Problem, Search, require_rows
    from mlet_tf.embeddings.bands import cut_bands
    from mlet_tf.embeddings.energy import measure_table, with_held_out_gains
    from mlet_tf.embeddings.served import trained_table

    unknown = [method for method in methods if method not in COMPRESSION_METHODS]
    if unknown or not methods:
        raise InputError(
            f"Methods: expected some of {', '.join(COMPRESSION_METHODS)}. Received: {', '.join(methods) or 'none'}"
        )
    held_out = None
    if choosing is not None:
        held_out, choosing = choosing.divided(SAMPLE_ROWS, seed)
    require_rows(budget, choosing)
    tables = reads.model_tables(model)
    if statistics is None:
        note("counting ids")
        counts, tails = reads.count_ids(model, tables, train), [0] * len(tables)
    else:
        counts, tails = zip(*(table.counts(statistics) for table in tables), strict=True)
    note("measuring what the predictions depend on")
    gradients = reads.measure_reads(model, tables, train.sample(SAMPLE_ROWS, seed))
    trained = [trained_table(t.factorization, count) for t, count in zip(tables, counts, strict=True)]
    energies = [
        measure_table(table, gradient.metric(), cut_bands(count, tail), tail)
        for table, gradient, count, tail in zip(trained, gradients, counts, tails, strict=True)
    ]
    if held_out is not None:
        energies = with_held_out_gains(energies, reads.measure_reads(model, tables, held_out))
    trained = [dataclasses.replace(t, basis=e.basis) for t, e in zip(trained, energies, strict=True)]
    problem = Problem(model, tables, trained, energies, methods, seed)
    allocation, points = Search(problem, budget, choosing, note, memory).run()
    vocabulary = 0 if statistics is None else statistics.vocabulary_bytes
    rows = 0 if choosing is None else len(choosing)
    report = make_report(budget, methods, tables, allocation, points, rows, vocabulary)
    return Compression(problem.served(allocation), report)


def _budget(values: Mapping[str, float]) -> Budget:
    known = [field.name for field in dataclasses.fields(Budget)]
    if unknown := [name for name in values if name not in known]:
        raise InputError(f"Budget: expected one of {', '.join(known)}. Received: {', '.join(unknown)}")
    return Budget(**values)  # type: ignore[arg-type]  # It checks them itself.


def _silent(_: str) -> None:
    pass
