"""Compression of a model of the pipeline, on packed rows (TensorFlow)."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import keras
from absl import logging

from mlet_tf.compression.compress import SAMPLE_ROWS, Compression, compress_rows
from mlet_tf.compression.rows import LabelledRows
from mlet_tf.compression.search import predict
from mlet_tf.config import CompressConfig, TrainConfig
from mlet_tf.embeddings.plan import Budget, RowStatistics
from mlet_tf.features.packed_rows import PackedRows
from mlet_tf.layers import EmbeddingCollection
from mlet_tf.metrics import auc, auc_difference
from mlet_tf.replace import layers_of
from mlet_tf.training.build import compile_model
from mlet_tf.training.loop import steps_an_epoch, train

_SEED = 0  # Draws rows and the hashes of ids.


def compress_packed(
    model: keras.Model,
    train_rows: PackedRows,
    choosing_rows: PackedRows,
    config: CompressConfig,
    tail: int,
    *,
    train_config: TrainConfig | None = None,
    vocabulary_bytes: int = 0,
    work: Path | None = None,
    note: Callable[[str], None] = logging.info,
) -> Compression:
    """Compresses a model to a budget.

    Args:
        model: Takes `{"dense_features": [B, D], "sparse_features": [B, F]}`, gives the CTR `[B]`; its tables are those
            of one `EmbeddingCollection`.
        train_rows: Rows that it was trained on.
        choosing_rows: Rows that it was not trained on, for the choice; others should judge the result.
        config: Budget, methods and fine-tuning.
        tail: Ids at the end of each feature, OOV and missing.
        train_config: How the model was trained, for fine-tuning.
        vocabulary_bytes: Bytes of the vocabulary files, for the report.
        work: Folder in which an interrupted compression of the same model finds its finished steps.
        note: Called with a line about each step.

    Raises:
        InputError: The budget cannot be met; the message names the smallest size.
    """
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    (collection,) = (layer for layer in layers_of(model) if isinstance(layer, EmbeddingCollection))
    names = [feature.name for feature in collection.features]
    counts = train_rows.id_counts(tuple(feature.input_dim for feature in collection.features))
    choosing = LabelledRows.packed(choosing_rows)
    found = compress_rows(
        model,
        LabelledRows.packed(train_rows),
        choosing,
        Budget(**config.budget.to_plain()),
        methods=config.methods,
        seed=_SEED,
        note=note,
        statistics=RowStatistics(
            dict(zip(names, counts, strict=True)), dict.fromkeys(names, tail), vocabulary_bytes
        ),
        memory=None if work is None else work / "scores.json",
    )
    if config.fine_tune and train_config is not None and work is not None:
        found = _fine_tuned(found, train_rows, choosing_rows, train_config, config.fine_tune, work, note)
    return found


def _fine_tuned(
    found: Compression,
    train_rows: PackedRows,
    choosing_rows: PackedRows,
    config: TrainConfig,
    share: float,
    work: Path,
    note: Callable[[str], None],
) -> Compression:
    """Trains the dense layers on; the rows are as they are served. Takes the result where its AUC is better."""
    _, scoring = LabelledRows.packed(choosing_rows).divided(
        SAMPLE_ROWS, _SEED
    )  # The rows that have scored sizes.
    config = config.for_rows(train_rows.rows)
    steps = max(1, int(share * steps_an_epoch(train_rows.rows, config.rows_a_step)))
    config = config.replace(epochs=1, max_steps=steps, early_stopping_patience=None)
    before, weights = predict(found.model, scoring.inputs), found.model.get_weights()
    compile_model(found.model, config, steps)
    folder, board = work / "fine_tune", str(work / "fine_tune_board")
    # A model that a small budget has left nothing to tell is for the gate.
    train(found.model, train_rows, choosing_rows, config, folder, board, must_learn=False)
    after = predict(found.model, scoring.inputs)
    gain, error = auc_difference(scoring.label, after, before)
    note(f"fine-tuning: AUC {gain:+.5f} ± {error:.5f}")
    if not gain > 0:
        found.model.set_weights(weights)
        return found
    reached = auc(scoring.label, after)
    return dataclasses.replace(found, report={**found.report, "fine_tuned": True, "auc_after": reached})
