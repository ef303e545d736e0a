"""One training and what is measured of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from mlet_tf.collapse import collapse_model
from mlet_tf.errors import InputError
from mlet_tf.experiments import truncation
from mlet_tf.experiments.baselines import HashedEmbeddings, QuotientRemainderEmbeddings
from mlet_tf.experiments.config import Cell, TrainingConfig
from mlet_tf.experiments.data import PreparedData, Rows
from mlet_tf.experiments.nested import NestedEmbeddings, embedding_collection
from mlet_tf.layers import DotInteraction, EmbeddingCollection, EmbeddingFeature
from mlet_tf.metrics import ctr_metrics
from mlet_tf.models import DLRM
from mlet_tf.models.dlrm import mlp
from mlet_tf.optimizers import split_optimizer
from mlet_tf.optimizers.names import OPTIMIZERS

NESTED_SIZES = (2, 4, 8, 16, 32)
_METRICS = ("auc", "logloss", "normalized_entropy")
_EVALUATION_ROWS = 16_384
_GATHERED_BATCHES = 32
_FINE_TUNE_RATE = 0.3  # A fresh Adagrad begins with steps as large as at the start of training.
_VALUE_BYTES = 4
_CHOICES_SINCE = ("dtype", "hidden_scale", "table_l2", "projection_l2")
_INPUTS = {"dense_features": "float32", "sparse_features": "int32"}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        cell: What is trained.
        stage: `tune`, `final` or `control`.
        seed: Seed of initialisation and data order.
        rates: Learning rates of tables, projections and dense part.
        truncate_to: Ranks to which the trained model is truncated too.
        fine_tune: See `GridConfig`.
    """

    cell: Cell
    stage: str
    seed: int
    rates: tuple[float, float, float]
    truncate_to: tuple[int, ...] = ()
    fine_tune: float = 0.0

    def key(self, training: TrainingConfig, data_digest: str) -> str:
        """Names the trial, however the sweep it belongs to is ordered."""
        values = dataclasses.asdict(self) | {"training": training.to_plain(), "data": data_digest}
        if self.cell.initialization == "fixed_variance":
            values["cell"]["initialization"] = "authors"  # Its name when the first trials were stored.
        # Keys of trials that were stored before there was a choice.
        if not self.fine_tune:
            del values["fine_tune"]
        for name in _CHOICES_SINCE:
            if getattr(self.cell, name) == getattr(Cell, name):
                del values["cell"][name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def run_trial(trial: Trial, training: TrainingConfig, data: PreparedData) -> list[dict[str, Any]]:
    """Trains and evaluates.

    Args:
        trial: The trial.
        training: What all trials have in common.
        data: The rows.

    Returns:
        The record of the trial, then one for each truncation of it.
    """
    model = build_model(trial, training, data)
    wall, cpu = time.monotonic(), time.process_time()
    fit(model, data.rows("train"), training, trial.seed)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    splits = ("validation",) if trial.stage == "tune" else ("validation", "test")
    record = {
        **_identity(trial, training, data),
        "bytes": served_values(model) * _VALUE_BYTES,
        "rows": len(data.rows("train")),
        "train_seconds": round(wall, 2),
        "train_cpu_seconds": round(cpu, 2),
        **evaluate(model, data, splits),
    }
    records = [record]
    if trial.truncate_to:
        records += _truncations(trial, training, model, record, data)
    return records


def build_model(trial: Trial, training: TrainingConfig, data: PreparedData) -> DLRM:
    """The compiled DLRM of a trial."""
    keras.utils.set_random_seed(trial.seed)
    cell = trial.cell
    keras.config.set_dtype_policy(cell.dtype)
    width = cell.reference_dim or cell.output_dim
    model = DLRM(
        embedding_layer=embedding_layer(cell, data.table_rows),
        bottom_stack=mlp([*training.bottom_units, width], "relu"),
        feature_interaction=DotInteraction(),
        top_stack=mlp([*training.top_units, 1], "sigmoid"),
        # Streaming metrics would cost a part of every step; predictions are scored afterwards.
        task=tfrs.tasks.Ranking(loss=keras.losses.BinaryCrossentropy(), metrics=[]),
    )
    num_dense = data.rows("validation").dense_features.shape[1]
    model.build({"dense_features": (None, num_dense), "sparse_features": (None, len(data.table_rows))})
    model.compile(
        optimizer=_optimizer(cell, trial.rates, training),
        steps_per_execution=training.steps_per_execution,
    )
    return model


def embedding_layer(cell: Cell, table_rows: dict[str, int]) -> keras.layers.Layer:
    """The embeddings of a cell."""
    if cell.kind in ("hash", "qr"):
        layer = HashedEmbeddings if cell.kind == "hash" else QuotientRemainderEmbeddings
        return layer(table_rows, cell.reference_dim, cell.output_dim / cell.reference_dim)
    hidden_dim, threshold = cell.hidden_dim, cell.direct_threshold
    if cell.kind == "projected":
        # A table that a projection would not make smaller stays as it is.
        hidden_dim, threshold = cell.output_dim, _largest_useless(cell.output_dim, cell.reference_dim)
    collection = EmbeddingCollection(
        [EmbeddingFeature(name, size, hidden_dim=_scaled(cell, size)) for name, size in table_rows.items()],
        cell.reference_dim or cell.output_dim,
        hidden_dim,
        threshold,
        initialization=cell.initialization or "fixed_variance",
        projection_trainable=cell.kind != "mlet_frozen",
    )
    return NestedEmbeddings(collection, NESTED_SIZES) if cell.kind == "nested" else collection


def fit(
    model: keras.Model, rows: Rows, training: TrainingConfig, seed: int, share: float | None = None
) -> None:
    """Trains; the order of the rows depends on seed and epoch alone.

    Args:
        model: A compiled model.
        rows: The training rows.
        training: Batch size and epochs.
        seed: Seed of the order.
        share: Share of one more epoch to train, in the place of the configured epochs.
    """
    steps = int(len(rows) * (1.0 if share is None else share)) // training.batch_size
    if not steps:
        raise InputError(
            f"'batch_size' is {training.batch_size}, but there are only {len(rows)} training rows"
        )
    for epoch in range(training.epochs) if share is None else (training.epochs,):
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))[: steps * training.batch_size]
        dataset = _batches(rows, order.reshape(steps, training.batch_size))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras wonders whether the rows are shuffled; they are.
            model.fit(dataset, verbose=0)


def _batches(rows: Rows, order: np.ndarray) -> tf.data.Dataset:
    """Batches of the rows named by `order` `[steps, batch]`, gathered many at a time."""

    def blocks() -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        for start in range(0, len(order), _GATHERED_BATCHES):
            index = order[start : start + _GATHERED_BATCHES]
            yield _inputs(rows, index), rows.label[index]

    batch = order.shape[1]
    widths = {name: getattr(rows, name).shape[1] for name in _INPUTS}
    signature = (
        {name: tf.TensorSpec([None, batch, widths[name]], _INPUTS[name]) for name in _INPUTS},
        tf.TensorSpec([None, batch], "float32"),
    )
    dataset = tf.data.Dataset.from_generator(blocks, output_signature=signature).unbatch()
    return dataset.apply(tf.data.experimental.assert_cardinality(len(order))).prefetch(4)


def predict(model: keras.Model, rows: Rows) -> np.ndarray:
    """Click probabilities `[N]`."""
    starts = range(0, len(rows), _EVALUATION_ROWS)
    blocks = (_inputs(rows, slice(start, start + _EVALUATION_ROWS)) for start in starts)
    return np.concatenate([np.asarray(model.predict_on_batch(block)) for block in blocks])


def evaluate(model: keras.Model, data: PreparedData, splits: Sequence[str]) -> dict[str, dict[str, float]]:
    """Metrics by split; for `test` also those of the rows with a rare id."""
    result = {}
    for split in splits:
        rows = data.rows(split)
        ctr = predict(model, rows)
        result[split] = _metrics(rows.label, ctr)
        if split == "test":
            rare = data.rare_rows(split)
            result["test_rare"] = _metrics(np.asarray(rows.label)[rare], ctr[rare]) | {
                "rows": int(rare.sum())
            }
    return result


def served_values(model: DLRM) -> int:
    """Numbers in the tables that the model would be served with."""
    layer = model._embedding_layer
    if isinstance(layer, HashedEmbeddings | QuotientRemainderEmbeddings):
        return layer.served_values
    values = 0
    for table in embedding_collection(model).factorizations():
        *_, last = table.projections or (None,)
        narrow = last is not None and last.shape[0] < last.shape[1]
        columns = last.shape[0] if narrow else table.output_dim
        values += table.rows * columns + (last.size if narrow else 0)
    return values


def _scaled(cell: Cell, rows: int) -> int | None:
    """Hidden dim of a feature of so many rows; None for that of the collection."""
    if cell.hidden_scale is None:
        return None
    power = 2 ** round(math.log2(cell.hidden_scale * math.sqrt(rows)))
    return max(cell.output_dim, min(cell.hidden_dim, power))


def _largest_useless(columns: int, width: int) -> int:
    """Largest V for which `[V, columns]` and `[columns, width]` together are no smaller than `[V, width]`."""
    return columns * width // (width - columns) if columns < width else 1 << 62


def _inputs(rows: Rows, index: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(rows, name)[index]) for name in _INPUTS}


def _metrics(label: np.ndarray, ctr: np.ndarray) -> dict[str, float]:
    values = {name: round(value, 6) for name, value in ctr_metrics(label, ctr).items() if name in _METRICS}
    # JSON has no NaN; a metric that these labels leave undefined is left out.
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _optimizer(cell: Cell, rates: tuple[float, float, float], training: TrainingConfig) -> Any:
    def make(name: str, rate: float, l2: float = 0.0) -> Any:
        start = {"initial_accumulator_value": training.initial_accumulator}
        return OPTIMIZERS[name](rate, l2=l2, **(start if name.endswith("adagrad") else {}))

    return split_optimizer(
        tables=make(cell.optimizer, rates[0], cell.table_l2),
        projections=make("sgd" if cell.optimizer == "sgd" else "adagrad", rates[1], cell.projection_l2),
        dense=make(training.dense_optimizer, rates[2]),
    )


def _identity(trial: Trial, training: TrainingConfig, data: PreparedData) -> dict[str, Any]:
    return {
        "key": trial.key(training, data.digest),
        "data": data.digest,
        "stage": trial.stage,
        **trial.cell.to_dict(),
        "method": None,
        "seed": trial.seed,
        "learning_rates": dict(zip(("tables", "projections", "dense"), trial.rates, strict=True)),
    }


def _truncations(
    trial: Trial, training: TrainingConfig, model: DLRM, record: dict[str, Any], data: PreparedData
) -> list[dict[str, Any]]:
    """Records of the trained model with fewer columns, as it is and trained on for a while."""
    collapsed = collapse_model(model)
    collection = embedding_collection(collapsed)
    tables = [collection.effective_table(name) for name in data.table_rows]
    methods = truncation.METHODS if trial.cell.kind == "nested" else truncation.METHODS[1:]
    bottom = truncation.bottom_moment(model, data.rows("validation").dense_features[:_EVALUATION_ROWS])
    records = []
    for candidate in truncation.candidates(tables, data.counts(), trial.truncate_to, methods, bottom):
        # With the tables at their old width the same model can be scored again and again.
        collection.tables[0].assign(np.concatenate(candidate.restored()))
        common = record | {"truncated_to": candidate.size, "bytes": candidate.values * _VALUE_BYTES}
        del common["validation"]
        records.append(common | {"method": candidate.method} | evaluate(collapsed, data, ("test",)))
        if trial.fine_tune and candidate.method == "allocated":
            tuned = truncation.truncated_model(collapsed, candidate)
            rates = tuple(rate * _FINE_TUNE_RATE for rate in trial.rates)
            tuned.compile(optimizer=_optimizer(trial.cell, rates, training), steps_per_execution=8)
            fit(tuned, data.rows("train"), training, trial.seed, trial.fine_tune)
            records.append(common | {"method": "fine_tuned"} | evaluate(tuned, data, ("test",)))
    return records
