"""One training of a sweep and its measurements."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from mlet_tf.collapse import collapse_model
from mlet_tf.compression.packed import compress_packed
from mlet_tf.config import BudgetConfig, CompressConfig, TrainConfig
from mlet_tf.config.sweep import SweepConfig
from mlet_tf.embeddings.kinds import KINDS, budget_of_columns
from mlet_tf.embeddings.plan import Plan
from mlet_tf.experiments import switching, truncation
from mlet_tf.experiments.cells import Cell, model_config, train_config
from mlet_tf.experiments.data import PreparedData
from mlet_tf.experiments.slices import by_frequency
from mlet_tf.experiments.tables import embedding_collection
from mlet_tf.features.packed_rows import PackedRows
from mlet_tf.layers import EmbeddingFeature
from mlet_tf.metrics import ctr_metrics
from mlet_tf.models import DLRM
from mlet_tf.training import build
from mlet_tf.training.checkpoints import Progress
from mlet_tf.training.early_stopping import EarlyStopping, WeightsInMemory
from mlet_tf.training.evaluation import Predictor
from mlet_tf.training.learned import judge
from mlet_tf.training.loop import EpochBatches, fit_epochs, steps_an_epoch, total_steps
from mlet_tf.training.optimizers import GROUPS

_METRICS = ("auc", "logloss", "normalized_entropy")
_MOMENT_ROWS = 16_384
_FINE_TUNE_RATE = 0.3  # A fresh Adagrad begins with steps as large as at the start of training.
_VALUE_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        cell: What is trained.
        stage: `tune`, `final` or `control`.
        seed: Seed of initialisation and data order.
        tuned: Keys of the training, dotted, with the values that tuning gave them.
        truncate_to: Ranks to which the trained model is also truncated.
        fine_tune: Share of an epoch for which truncated models are fine-tuned, see `GridConfig`.
        compress_to: How many times smaller the trained model is also made.
        notes: What the records say of its tuning: `tuning` and `at_edge`, see `mlet_tf.experiments.tuning`.
    """

    cell: Cell
    stage: str
    seed: int
    tuned: tuple[tuple[str, float], ...] = ()
    truncate_to: tuple[int, ...] = ()
    fine_tune: float = 0.0
    compress_to: tuple[float, ...] = ()
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def key(self, config: SweepConfig, data_digest: str) -> str:
        """Key of the trial: all that its training depends on, and not the order of the sweep."""
        values = {
            "cell": dataclasses.asdict(self.cell),
            "stage": self.stage,
            "model": model_config(config, self.cell).to_plain(),
            "train": self.train_config(config).to_plain(),
            "truncate_to": self.truncate_to,
            "fine_tune": self.fine_tune,
            "data": data_digest,
        }
        if self.compress_to:
            values["compress_to"] = self.compress_to
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def train_config(self, config: SweepConfig) -> TrainConfig:
        """Returns the training configuration, as a run has it."""
        return train_config(config, self.cell, dict(self.tuned), self.seed)

    def training(self, config: SweepConfig, data: PreparedData) -> TrainConfig:
        """The training on these rows: nothing is null that depends on them."""
        return self.train_config(config).for_rows(data.splits["train"].rows)


def run_trial(trial: Trial, config: SweepConfig, data: PreparedData) -> list[dict[str, Any]]:
    """Trains and evaluates.

    Args:
        trial: The trial.
        config: The study.
        data: The rows.

    Returns:
        The record of the trial, then one for each truncation and compression of it. `epochs` has the metrics of
        validation rows after each epoch, `best_epoch` the one whose weights all others are of; `constant` or `diverged`
        is there, and true, where it has learned nothing.
    """
    model, progress = build_model(trial, config, data), Progress()
    rows, train = data.splits["train"], trial.training(config, data)
    wall, cpu = time.monotonic(), time.process_time()
    if trial.cell.collapse_at is not None:
        steps = _epoch_steps(rows, train), total_steps(train, rows.rows)
        model, progress = switching.fit_and_collapse(
            model, _permuted(rows, train), *steps, trial.cell.collapse_at, train
        )
    predictor = Predictor(model)
    fit(model, data.splits, train, predictor, progress)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    splits = ("validation",) if trial.stage == "tune" else ("validation", "test")
    record = {
        **_identity(trial, config, data),
        "bytes": _plan(
            trial.cell, data.table_rows, model_config(config, trial.cell).output_dim
        ).bytes.embedding,
        "rows": rows.rows,
        "train_seconds": round(wall, 2),
        "train_cpu_seconds": round(cpu, 2),
        "epochs": [_epoch(epoch) for epoch in progress.history],
        "best_epoch": progress.final_epoch,
        **_fault(progress, data.splits["validation"]),
        **evaluate(predictor, data, splits),
    }
    records = [record]
    if trial.truncate_to:
        records += _truncations(trial, config, model, record, data)
    records += [_compression(ratio, model, record, data) for ratio in trial.compress_to]
    return records


def run_alone(trial: Trial, config: SweepConfig, data: PreparedData) -> list[dict[str, Any]]:
    """`run_trial` in a process of a sweep, which keeps nothing of it."""
    records = run_trial(trial, config, data)
    keras.backend.clear_session()
    return records


def build_model(trial: Trial, config: SweepConfig, data: PreparedData) -> DLRM:
    """The compiled DLRM of a trial."""
    keras.utils.set_random_seed(trial.seed)
    rows, train = data.splits["train"], trial.training(config, data)
    model = build.build_model(
        model_config(config, trial.cell),
        data.table_rows,
        rows.dense,
        functools.partial(make_embeddings, trial.cell),
        streaming_metrics=False,  # Predictions are scored afterwards.
    )
    build.compile_model(model, train, total_steps(train, rows.rows))
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
    kind, rows = KINDS[cell.kind], {feature.name: feature.input_dim for feature in features}
    features = [
        dataclasses.replace(feature, hidden_dim=_scaled(cell, feature.input_dim)) for feature in features
    ]
    return kind.layer(_plan(cell, rows, output_dim), features, hidden_dim, **options)


def fit(
    model: keras.Model,
    splits: Mapping[str, PackedRows],
    config: TrainConfig,
    predictor: Predictor | None = None,
    progress: Progress | None = None,
) -> Progress:
    """Trains, and stops early by the validation rows; the order of the rows depends on seed and epoch alone.

    Args:
        model: A compiled model.
        splits: Its rows, `train` and `validation`.
        config: Batch size, epochs, steps, early stopping and seed.
        predictor: Predicts with the model; made here by default.
        progress: Where the training begins, by default at the start; updated.

    Returns:
        Where the training has ended.
    """
    rows, validation = splits["train"], splits["validation"]
    predictor, progress = predictor or Predictor(model), progress or Progress()
    stopping = EarlyStopping(config, progress, WeightsInMemory(model))

    def end_epoch(loss: float, started: float) -> None:
        found = predictor.metrics(validation)
        record = {f"eval_{name}": found[name] for name in ("auc", "logloss")}
        seconds = time.monotonic() - started
        stopping.judge({"epoch": progress.epoch, "loss": loss, **record, "seconds": seconds})

    steps = total_steps(config, rows.rows)
    fit_epochs(
        model, _permuted(rows, config), _epoch_steps(rows, config), steps, progress, end_epoch=end_epoch
    )
    stopping.end()
    return progress


def fine_tune(model: keras.Model, rows: PackedRows, config: TrainConfig, share: float) -> None:
    """Trains for a share of one more epoch than those of the configuration."""
    steps = config.epochs * _epoch_steps(rows, config) + _share_steps(rows, config, share)
    progress = Progress(epoch=config.epochs)
    fit_epochs(model, _permuted(rows, config), _epoch_steps(rows, config), steps, progress)


def evaluate(predictor: Predictor, data: PreparedData, splits: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Metrics by split; for `test` also of the rows with a rare id, and by feature and frequency of its id."""
    result: dict[str, dict[str, Any]] = {}
    for split in splits:
        rows = data.splits[split]
        ctr = predictor(rows)
        result[split] = _metrics(rows.label, ctr)
        if split == "test":
            rare = data.rare_rows(split)
            result["test_rare"] = _metrics(rows.label[rare], ctr[rare]) | {"rows": int(rare.sum())}
            result["test_by_frequency"] = by_frequency(data, split, ctr)
    return result


def _plan(cell: Cell, rows: Mapping[str, int], output_dim: int) -> Plan:
    """Returns the plan of what is served of a cell."""
    return KINDS[cell.kind].plan(rows, output_dim, budget_of_columns(rows, cell.output_dim))


def _permuted(rows: PackedRows, config: TrainConfig) -> EpochBatches:
    return lambda epoch, step: rows.permuted_batches(config.rows_a_step, (config.seed, epoch), step)


def _epoch_steps(rows: PackedRows, config: TrainConfig) -> int:
    return steps_an_epoch(rows.rows, config.rows_a_step)


def _share_steps(rows: PackedRows, config: TrainConfig, share: float) -> int:
    return steps_an_epoch(int(rows.rows * share), config.rows_a_step)


def _scaled(cell: Cell, rows: int) -> int | None:
    """Hidden dim of a feature of so many rows; None for that of the collection."""
    if cell.hidden_scale is None:
        return None
    power = 2 ** round(math.log2(cell.hidden_scale * math.sqrt(rows)))
    return max(cell.output_dim, min(cell.hidden_dim, power))


def _metrics(label: np.ndarray, ctr: np.ndarray) -> dict[str, float]:
    values = {name: round(value, 6) for name, value in ctr_metrics(label, ctr).items() if name in _METRICS}
    # JSON has no NaN; a metric that these labels leave undefined is left out.
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _epoch(record: Mapping[str, float]) -> dict[str, float]:
    """What a record keeps of an epoch; JSON has no NaN."""
    names = {"epoch": "epoch", "eval_auc": "auc", "eval_logloss": "logloss", "seconds": "seconds"}
    values = {to: round(record[name], 2 if to == "seconds" else 6) for name, to in names.items()}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _fault(progress: Progress, validation: PackedRows) -> dict[str, bool]:
    """`{"constant": True}` or `{"diverged": True}` of a model that has not learned, see `mlet_tf.training.learned`."""
    reached = progress.record(progress.final_epoch)
    fault = judge(validation.label, reached["eval_auc"], reached["eval_logloss"]).fault
    return {fault: True} if fault else {}


def _identity(trial: Trial, config: SweepConfig, data: PreparedData) -> dict[str, Any]:
    train = trial.training(config, data)
    return {
        "key": trial.key(config, data.digest),
        "data": data.digest,
        "stage": trial.stage,
        **trial.cell.to_dict(),
        "method": None,
        "seed": trial.seed,
        "learning_rates": {role: getattr(train, role).learning_rate for role in GROUPS},
        "l2": {role: getattr(train, role).l2 for role in GROUPS},
        **trial.notes,
    }


def _slower(train: TrainConfig, factor: float) -> TrainConfig:
    """The training with a factor on its learning rates."""
    rules = {role: getattr(train, role) for role in GROUPS}
    return train.replace(
        **{role: rule.replace(learning_rate=rule.learning_rate * factor) for role, rule in rules.items()}
    )


def _truncations(
    trial: Trial, config: SweepConfig, model: DLRM, record: dict[str, Any], data: PreparedData
) -> list[dict[str, Any]]:
    """Records of the trained model with fewer columns, as it is and trained on for a while."""
    collapsed = collapse_model(model)
    collection = embedding_collection(collapsed)
    tables = [collection.effective_table(name) for name in data.table_rows]
    methods = truncation.METHODS if KINDS[trial.cell.kind].leading_columns else truncation.METHODS[1:]
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
        del common["epochs"]
        scored = evaluate(predictor, data, ("validation", "test"))
        records.append(common | {"method": candidate.method} | scored)
        if trial.fine_tune and candidate.method == "allocated":
            tuned = truncation.truncated_model(collapsed, candidate)
            rows, train = data.splits["train"], _slower(trial.training(config, data), _FINE_TUNE_RATE)
            build.compile_model(tuned, train, _share_steps(rows, train, trial.fine_tune))
            fine_tune(tuned, rows, train, trial.fine_tune)
            scored = evaluate(Predictor(tuned), data, ("validation", "test"))
            records.append(common | {"method": "fine_tuned"} | scored)
    return records


def _compression(ratio: float, model: DLRM, record: dict[str, Any], data: PreparedData) -> dict[str, Any]:
    """The record of the trained model with so many times fewer bytes."""
    config = CompressConfig(budget=BudgetConfig(ratio=ratio))
    tail = data.oov_buckets + 1
    rows = data.splits["train"], data.splits["validation"]
    found = compress_packed(model, *rows, config, tail, note=lambda line: None)
    size = sum(found.report["bytes_after"].values())
    columns = record["output_dim"] / ratio
    named = {"method": "compressed", "truncated_to": int(columns) if columns.is_integer() else columns}
    common = {key: value for key, value in record.items() if key != "epochs"}
    return common | named | {"bytes": size} | evaluate(Predictor(found.model), data, ("validation", "test"))
