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
from mlet_tf.config import OptimizerConfig, TrainConfig
from mlet_tf.config.sweep import SweepConfig
from mlet_tf.experiments import truncation
from mlet_tf.experiments.baselines import HashedEmbeddings, QuotientRemainderEmbeddings
from mlet_tf.experiments.cells import ROLES, Cell, model_config, train_config
from mlet_tf.experiments.data import PreparedData
from mlet_tf.experiments.nested import NestedEmbeddings, embedding_collection
from mlet_tf.features.packed_rows import PackedRows
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature
from mlet_tf.metrics import ctr_metrics
from mlet_tf.models import DLRM
from mlet_tf.training import build
from mlet_tf.training.checkpoints import Progress
from mlet_tf.training.evaluation import Predictor
from mlet_tf.training.loop import fit_epochs, steps_an_epoch, total_steps

NESTED_SIZES = (2, 4, 8, 16, 32)
_METRICS = ("auc", "logloss", "normalized_entropy")
_MOMENT_ROWS = 16_384
_FINE_TUNE_RATE = 0.3  # A fresh Adagrad begins with steps as large as at the start of training.
_VALUE_BYTES = 4
_CHOICES_SINCE = ("dtype", "hidden_scale", "table_l2", "projection_l2", "settings")
_STORED_ACCUMULATOR = 1e-6  # In the keys of all stored trials without an Adagrad.


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        cell: What is trained.
        stage: `tune`, `final` or `control`.
        seed: Seed of initialisation and data order.
        rates: Learning rates of tables, projections and dense part.
        truncate_to: Ranks to which the trained model is truncated too.
        fine_tune: Share of an epoch for which truncations are trained on, see `GridConfig`.
    """

    cell: Cell
    stage: str
    seed: int
    rates: tuple[float, ...]
    truncate_to: tuple[int, ...] = ()
    fine_tune: float = 0.0

    def key(self, config: SweepConfig, data_digest: str) -> str:
        """Names the trial, however the sweep it belongs to is ordered."""
        values = dataclasses.asdict(self) | {"training": _stored_training(self, config), "data": data_digest}
        if self.cell.initialization == "fixed_variance":
            values["cell"]["initialization"] = "authors"  # Its name when the first trials were stored.
        # Keys of trials that were stored before there was a choice.
        if not self.fine_tune:
            del values["fine_tune"]
        for name in _CHOICES_SINCE:
            if getattr(self.cell, name) == getattr(Cell, name):
                del values["cell"][name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def train_config(self, config: SweepConfig, rate_factor: float = 1.0) -> TrainConfig:
        """The training as a run has it, with a factor on the learning rates."""
        return train_config(config, self.cell, [rate * rate_factor for rate in self.rates], self.seed)


def _stored_training(trial: Trial, config: SweepConfig) -> dict[str, Any]:
    """What trials have in common, in the words of the first ones: their keys are made of it.

    A training that these words do not tell in full stands beside them.
    """
    model, train = model_config(config, trial.cell), trial.train_config(config)
    rules = (train.tables, train.projections, train.dense)
    starts = [rule.initial_accumulator for rule in rules if rule.name.endswith("adagrad")]
    start = starts[0] if starts else _STORED_ACCUMULATOR
    shared = {name: getattr(train, name) for name in ("batch_size", "epochs", "steps_per_execution")}
    words = {
        **shared,
        "bottom_units": model.bottom_units,
        "top_units": model.top_units,
        "dense_optimizer": train.dense.name,
        "initial_accumulator": start,
    }
    names = (train.tables.name, "sgd" if train.tables.name == "sgd" else "adagrad", train.dense.name)
    told = {
        role: OptimizerConfig(
            name=name, learning_rate=rate, initial_accumulator=start if name.endswith("adagrad") else None
        )
        for role, name, rate in zip(ROLES, names, trial.rates, strict=True)
    }
    if train != TrainConfig(**shared, **told, seed=trial.seed):
        words["train"] = train.to_plain()
    return words


def run_trial(trial: Trial, config: SweepConfig, data: PreparedData) -> list[dict[str, Any]]:
    """Trains and evaluates.

    Args:
        trial: The trial.
        config: The study.
        data: The rows.

    Returns:
        The record of the trial, then one for each truncation of it.
    """
    model = build_model(trial, config, data)
    rows = data.splits["train"]
    wall, cpu = time.monotonic(), time.process_time()
    fit(model, rows, trial.train_config(config))
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    splits = ("validation",) if trial.stage == "tune" else ("validation", "test")
    record = {
        **_identity(trial, config, data),
        "bytes": served_values(model) * _VALUE_BYTES,
        "rows": rows.rows,
        "train_seconds": round(wall, 2),
        "train_cpu_seconds": round(cpu, 2),
        **evaluate(Predictor(model), data, splits),
    }
    records = [record]
    if trial.truncate_to:
        records += _truncations(trial, config, model, record, data)
    return records


def run_alone(trial: Trial, config: SweepConfig, data: PreparedData) -> list[dict[str, Any]]:
    """`run_trial` in a process of a sweep, which keeps nothing of it."""
    records = run_trial(trial, config, data)
    keras.backend.clear_session()
    return records


def build_model(trial: Trial, config: SweepConfig, data: PreparedData) -> DLRM:
    """The compiled DLRM of a trial."""
    keras.utils.set_random_seed(trial.seed)
    rows, train = data.splits["train"], trial.train_config(config)
    model = build.build_model(
        model_config(config, trial.cell),
        data.table_rows,
        rows.dense,
        functools.partial(make_embeddings, trial.cell),
        streaming_metrics=False,  # Predictions are scored afterwards.
    )
    _compile(model, trial, train, total_steps(train, rows.rows))
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
        hidden_dim: `k` of the cell; None for kinds without factors.
        **options: Further arguments of `EmbeddingCollection`.
    """
    if cell.kind in ("hash", "qr"):
        layer = HashedEmbeddings if cell.kind == "hash" else QuotientRemainderEmbeddings
        table_rows = {feature.name: feature.input_dim for feature in features}
        return layer(table_rows, output_dim, cell.output_dim / output_dim, dtype=options["dtype"])
    if cell.kind == "projected":
        # A table that a projection would not make smaller stays as it is.
        hidden_dim = cell.output_dim
        options["direct_threshold"] = _largest_useless(cell.output_dim, output_dim)
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
        config: Batch size, epochs, steps and seed.
        share: Share of one more epoch to train, in the place of the configured epochs.
    """
    epoch_steps = steps_an_epoch(rows.rows, config.batch_size)
    first, steps = 0, total_steps(config, rows.rows)
    if share is not None:
        first = config.epochs
        steps = first * epoch_steps + _share_steps(rows, config, share)
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


def _share_steps(rows: PackedRows, config: TrainConfig, share: float) -> int:
    return steps_an_epoch(int(rows.rows * share), config.batch_size)


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


def _compile(model: DLRM, trial: Trial, config: TrainConfig, steps: int) -> None:
    l2 = {"tables": trial.cell.table_l2, "projections": trial.cell.projection_l2}
    build.compile_model(model, config, steps, l2=l2)


def _identity(trial: Trial, config: SweepConfig, data: PreparedData) -> dict[str, Any]:
    return {
        "key": trial.key(config, data.digest),
        "data": data.digest,
        "stage": trial.stage,
        **trial.cell.to_dict(),
        "method": None,
        "seed": trial.seed,
        "learning_rates": dict(zip(ROLES, trial.rates, strict=True)),
    }


def _truncations(
    trial: Trial, config: SweepConfig, model: DLRM, record: dict[str, Any], data: PreparedData
) -> list[dict[str, Any]]:
    """Records of the trained model with fewer columns, as it is and trained on for a while."""
    collapsed = collapse_model(model)
    collection = embedding_collection(collapsed)
    tables = [collection.effective_table(name) for name in data.table_rows]
    methods = truncation.METHODS if trial.cell.kind == "nested" else truncation.METHODS[1:]
    bottom = truncation.bottom_moment(model, data.splits["validation"].dense_features[:_MOMENT_ROWS])
    # Of the model that keeps its tables.
    metrics = functools.partial(truncation.fisher_metrics, model, data.splits["train"])
    predictor, records = Predictor(collapsed), []
    for candidate in truncation.candidates(
        tables, data.counts(), trial.truncate_to, methods, bottom, metrics
    ):
        # With the tables at their old width the same model can be scored again and again.
        collection.tables[0].assign(np.concatenate(candidate.restored()))
        common = record | {"truncated_to": candidate.size, "bytes": candidate.values * _VALUE_BYTES}
        del common["validation"]
        records.append(common | {"method": candidate.method} | evaluate(predictor, data, ("test",)))
        if trial.fine_tune and candidate.method == "allocated":
            tuned = truncation.truncated_model(collapsed, candidate)
            rows, train = data.splits["train"], trial.train_config(config, _FINE_TUNE_RATE)
            _compile(tuned, trial, train, _share_steps(rows, train, trial.fine_tune))
            fit(tuned, rows, train, trial.fine_tune)
            records.append(common | {"method": "fine_tuned"} | evaluate(Predictor(tuned), data, ("test",)))
    return records
