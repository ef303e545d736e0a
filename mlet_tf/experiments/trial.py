"""One training and what is measured of it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from mlet_tf.collapse import collapse_model
from mlet_tf.config import ModelConfig, OptimizerConfig, TrainConfig
from mlet_tf.experiments import truncation
from mlet_tf.experiments.baselines import HashedEmbeddings, QuotientRemainderEmbeddings
from mlet_tf.experiments.config import Cell, TrainingConfig
from mlet_tf.experiments.data import PreparedData
from mlet_tf.experiments.nested import NestedEmbeddings, embedding_collection
from mlet_tf.features.packed_rows import PackedRows
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature
from mlet_tf.metrics import ctr_metrics
from mlet_tf.models import DLRM
from mlet_tf.training import build
from mlet_tf.training.checkpoints import Progress
from mlet_tf.training.evaluation import Predictor
from mlet_tf.training.loop import fit_epochs, steps_an_epoch

NESTED_SIZES = (2, 4, 8, 16, 32)
_METRICS = ("auc", "logloss", "normalized_entropy")
_MOMENT_ROWS = 16_384
_FINE_TUNE_RATE = 0.3  # A fresh Adagrad begins with steps as large as at the start of training.
_VALUE_BYTES = 4
_CHOICES_SINCE = ("dtype", "hidden_scale", "table_l2", "projection_l2")


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
    rates: tuple[float, ...]
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
    rows = data.splits["train"]
    wall, cpu = time.monotonic(), time.process_time()
    fit(model, rows, train_config(trial, training))
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    splits = ("validation",) if trial.stage == "tune" else ("validation", "test")
    record = {
        **_identity(trial, training, data),
        "bytes": served_values(model) * _VALUE_BYTES,
        "rows": rows.rows,
        "train_seconds": round(wall, 2),
        "train_cpu_seconds": round(cpu, 2),
        **evaluate(Predictor(model), data, splits),
    }
    records = [record]
    if trial.truncate_to:
        records += _truncations(trial, training, model, record, data)
    return records


def run_alone(trial: Trial, training: TrainingConfig, data: PreparedData) -> list[dict[str, Any]]:
    """`run_trial` in a process of a sweep, which keeps nothing of it."""
    records = run_trial(trial, training, data)
    keras.backend.clear_session()
    return records


def model_config(cell: Cell, training: TrainingConfig) -> ModelConfig:
    """The model of a cell, as a run's configuration has it; all but the width of its embeddings is the cell's."""
    return ModelConfig(
        output_dim=cell.reference_dim or cell.output_dim,
        hidden_dim=None,
        bottom_units=training.bottom_units,
        top_units=training.top_units,
        mixed_precision="on" if cell.dtype == "mixed_bfloat16" else "off",
    )


def train_config(trial: Trial, training: TrainingConfig, rate_factor: float = 1.0) -> TrainConfig:
    """The training of a trial, as a run's configuration has it.

    Args:
        trial: The trial.
        training: What all trials have in common.
        rate_factor: Factor on the trial's learning rates.
    """
    rules = (
        trial.cell.optimizer,
        "sgd" if trial.cell.optimizer == "sgd" else "adagrad",
        training.dense_optimizer,
    )
    tables, projections, dense = (
        OptimizerConfig(
            name=name,
            learning_rate=rate * rate_factor,
            initial_accumulator=training.initial_accumulator if name.endswith("adagrad") else None,
        )
        for name, rate in zip(rules, trial.rates, strict=True)
    )
    return TrainConfig(
        batch_size=training.batch_size,
        epochs=training.epochs,
        tables=tables,
        projections=projections,
        dense=dense,
        steps_per_execution=training.steps_per_execution,
        seed=trial.seed,
    )


def build_model(trial: Trial, training: TrainingConfig, data: PreparedData) -> DLRM:
    """The compiled DLRM of a trial."""
    keras.utils.set_random_seed(trial.seed)
    model = build.build_model(
        model_config(trial.cell, training),
        data.table_rows,
        data.splits["train"].dense,
        functools.partial(make_embeddings, trial.cell),
        streaming_metrics=False,  # Predictions are scored afterwards.
    )
    _compile(model, trial, train_config(trial, training))
    return model


def make_embeddings(
    cell: Cell,
    features: Sequence[EmbeddingFeature],
    output_dim: int,
    hidden_dim: int | None = None,
    **options: Any,
) -> keras.layers.Layer:
    """Makes the embeddings of a cell.

    Args:
        cell: The cell.
        features: The features.
        output_dim: Width that the rest of the model gets.
        hidden_dim: Not used: it is the cell's.
        **options: Further arguments of `EmbeddingCollection`, where the cell does not say otherwise.
    """
    if cell.kind in ("hash", "qr"):
        layer = HashedEmbeddings if cell.kind == "hash" else QuotientRemainderEmbeddings
        table_rows = {feature.name: feature.input_dim for feature in features}
        return layer(table_rows, output_dim, cell.output_dim / output_dim, dtype=options["dtype"])
    hidden_dim, options["direct_threshold"] = cell.hidden_dim, cell.direct_threshold
    if cell.kind == "projected":
        # A table that a projection would not make smaller stays as it is.
        hidden_dim = cell.output_dim
        options["direct_threshold"] = _largest_useless(cell.output_dim, output_dim)
    if cell.initialization:
        options["initialization"] = cell.initialization
    collection = EmbeddingCollection(
        [dataclasses.replace(feature, hidden_dim=_scaled(cell, feature.input_dim)) for feature in features],
        output_dim,
        hidden_dim,
        projection_trainable=cell.kind != "mlet_frozen",
        **options,
    )
    if cell.kind == "nested":
        return NestedEmbeddings(collection, NESTED_SIZES, dtype=options["dtype"])
    return collection


def fit(model: keras.Model, rows: PackedRows, config: TrainConfig, share: float | None = None) -> None:
    """Trains; the order of the rows depends on seed and epoch alone.

    Args:
        model: A compiled model.
        rows: The training rows.
        config: Batch size, epochs and seed.
        share: Share of one more epoch to train, in the place of the configured epochs.
    """
    epoch_steps = steps_an_epoch(rows.rows, config.batch_size)
    first, steps = 0, config.epochs * epoch_steps
    if share is not None:
        first = config.epochs
        steps += steps_an_epoch(int(rows.rows * share), config.batch_size)
    fit_epochs(
        model,
        lambda epoch, step: rows.permuted_batches(config.batch_size, (config.seed, epoch), step),
        epoch_steps,
        steps,
        Progress(epoch=first),
    )


def evaluate(predictor: Predictor, data: PreparedData, splits: Sequence[str]) -> dict[str, dict[str, float]]:
    """Metrics by split; for `test` also those of the rows with a rare id."""
    result = {}
    for split in splits:
        rows = data.splits[split]
        ctr = predictor(rows)
        result[split] = _metrics(rows.label, ctr)
        if split == "test":
            rare = data.rare_rows(split)
            result["test_rare"] = _metrics(rows.label[rare], ctr[rare]) | {"rows": int(rare.sum())}
    return result


def served_values(model: DLRM) -> int:
    """Numbers in the tables that the model would be served with."""
    layer = model._embedding_layer
    if isinstance(layer, HashedEmbeddings | QuotientRemainderEmbeddings):
        return layer.served_values
    values = 0
    for table in embedding_collection(model).factorizations():
        last = table.projections[-1] if table.projections else None
        if last is not None and last.shape[0] < last.shape[1]:
            values += table.rows * last.shape[0] + last.size
        else:
            values += table.rows * table.output_dim
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


def _metrics(label: np.ndarray, ctr: np.ndarray) -> dict[str, float]:
    values = {name: round(value, 6) for name, value in ctr_metrics(label, ctr).items() if name in _METRICS}
    # JSON has no NaN; a metric that these labels leave undefined is left out.
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _compile(model: DLRM, trial: Trial, config: TrainConfig) -> None:
    l2 = {"tables": trial.cell.table_l2, "projections": trial.cell.projection_l2}
    build.compile_model(model, config, steps=0, l2=l2)  # No schedule needs the steps.


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
    bottom = truncation.bottom_moment(model, data.splits["validation"].dense_features[:_MOMENT_ROWS])
    predictor, records = Predictor(collapsed), []
    for candidate in truncation.candidates(tables, data.counts(), trial.truncate_to, methods, bottom):
        # With the tables at their old width the same model can be scored again and again.
        collection.tables[0].assign(np.concatenate(candidate.restored()))
        common = record | {"truncated_to": candidate.size, "bytes": candidate.values * _VALUE_BYTES}
        del common["validation"]
        records.append(common | {"method": candidate.method} | evaluate(predictor, data, ("test",)))
        if trial.fine_tune and candidate.method == "allocated":
            tuned = truncation.truncated_model(collapsed, candidate)
            config = train_config(trial, training, _FINE_TUNE_RATE)
            _compile(tuned, trial, config)
            fit(tuned, data.splits["train"], config, trial.fine_tune)
            records.append(common | {"method": "fine_tuned"} | evaluate(Predictor(tuned), data, ("test",)))
    return records
