"""The Trainer's `run_fn`: DLRM with MLET embeddings, resumable, deterministic on a CPU.

The trained model is written twice below the Trainer's artifact: `Format-Serving` (SavedModel with
the signatures of `mlet_tf.export`) and `Format-Keras/model.keras`, which the collapse reads.
"""

import dataclasses
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
import tensorflow_transform as tft
from absl import logging

from components.common import TransformGraph, join, save_model
from mlet_tf._mapping import from_mapping
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.errors import InputError
from mlet_tf.layers import EmbeddingFeature
from mlet_tf.models import DLRM, build_dlrm
from mlet_tf.optimizers import LazyAdam, RowWiseAdagrad, SparseAdagrad, SparseSGD, split_optimizer
from pipeline.config import ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig, VocabularyConfig
from pipeline.examples import PackedRows, pack_examples, vocabulary_sizes

HISTORY = "history.json"

_OPTIMIZERS = {
    "sgd": SparseSGD,
    "adagrad": SparseAdagrad,
    "row_wise_adagrad": RowWiseAdagrad,
    "lazy_adam": LazyAdam,
}
_LOG_SECONDS = 10.0


@dataclasses.dataclass
class Progress:
    """Where training stands; stored with each checkpoint.

    Attributes:
        epoch: Epochs that are complete.
        step: Steps of the current epoch that are complete.
        best_logloss: Lowest evaluation logloss so far.
        stale_epochs: Epochs since then.
        stopped: Whether early stopping has ended the training.
        history: A record an epoch: `epoch`, `loss`, `eval_logloss`, `eval_auc`, `seconds`.
    """

    epoch: int = 0
    step: int = 0
    best_logloss: float = math.inf
    stale_epochs: int = 0
    stopped: bool = False
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)


class _ProgressState(tf.train.experimental.PythonState):
    """Lets a `Progress` travel inside a TensorFlow checkpoint, written and read with the weights as one."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def serialize(self) -> str:
        return json.dumps(dataclasses.asdict(self.progress))

    def deserialize(self, string_value: str | bytes) -> None:
        for key, value in json.loads(string_value).items():
            setattr(self.progress, key, value)


def run_fn(fn_args: Any) -> None:
    """TFX Trainer entry point.

    Args:
        fn_args: TFX's `FnArgs`; `custom_config` holds `schema`, `model`, `train` and `vocabulary`, as
            in the configuration.
    """
    config = fn_args.custom_config
    schema = ClickLogSchema.from_dict(config["schema"])
    train_config = from_mapping(TrainConfig, config["train"], "train")
    transform_output = tft.TFTransformOutput(fn_args.transform_output)
    transform = TransformGraph(transform_output)
    work = _work_folder(fn_args)
    train_rows = pack_examples(fn_args.train_files, schema, transform, work / "packed" / "train")
    eval_rows = pack_examples(fn_args.eval_files, schema, transform, work / "packed" / "eval")
    keras.utils.set_random_seed(train_config.seed)
    strategy = distribution_strategy()
    with strategy.scope():
        model = build_model(
            from_mapping(ModelConfig, config["model"], "model"),
            feature_rows(
                transform_output, schema, from_mapping(VocabularyConfig, config["vocabulary"], "vocabulary")
            ),
            train_rows.dense,
        )
        compile_model(model, train_config, total_steps(train_config, train_rows.rows))
        board = join(fn_args.model_run_dir, "tensorboard")
        progress = train(model, train_rows, eval_rows, train_config, work, board)
    uri = os.path.dirname(fn_args.serving_model_dir)  # noqa: PTH120 (may be remote)
    save_model(model, schema, transform, uri)
    with tf.io.gfile.GFile(join(uri, HISTORY), "w") as file:
        json.dump(progress.history, file)


def _work_folder(fn_args: Any) -> Path:
    """A folder that the same training finds again after a kill, and no other one does."""
    inputs = [fn_args.custom_config, fn_args.transform_output, fn_args.train_files, fn_args.eval_files]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    return Path(fn_args.custom_config["work"]) / digest[:16]


def distribution_strategy() -> tf.distribute.Strategy:
    """One device, or all GPUs of this machine."""
    return (
        tf.distribute.MirroredStrategy()
        if len(tf.config.list_logical_devices("GPU")) > 1
        else tf.distribute.get_strategy()
    )


def feature_rows(
    transform_output: tft.TFTransformOutput, schema: ClickLogSchema, vocabulary: VocabularyConfig
) -> dict[str, int]:
    """Rows V of each feature's table: its vocabulary, the OOV buckets and one for missing."""
    sizes = vocabulary_sizes(transform_output, schema)
    return {name: size + vocabulary.num_oov_buckets + 1 for name, size in sizes.items()}


def build_model(config: ModelConfig, rows: Mapping[str, int], num_dense: int) -> DLRM:
    """The DLRM of a configuration.

    Args:
        config: The model's part of the configuration.
        rows: Table rows V by feature, in the order of `sparse_features`.
        num_dense: D, width of `dense_features`.
    """
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    mixed = config.mixed_precision == "on" or (config.mixed_precision == "auto" and on_gpu)
    return build_dlrm(
        num_dense=num_dense,
        features=[EmbeddingFeature(name, size) for name, size in rows.items()],
        output_dim=config.output_dim,
        hidden_dim=config.hidden_dim,
        direct_threshold=config.direct_threshold,
        bottom_units=config.bottom_units,
        top_units=config.top_units,
        initialization=config.initialization,
        dtype="mixed_bfloat16" if mixed else "float32",
    )


def total_steps(config: TrainConfig, rows: int) -> int:
    """Steps of the whole training.

    Raises:
        InputError: If there are fewer rows than a batch takes.
    """
    if rows < config.batch_size:
        raise InputError(
            f"'train.batch_size' is {config.batch_size}, but the train split has only {rows} rows"
        )
    steps = rows // config.batch_size * config.epochs
    return min(steps, config.max_steps or steps)


def compile_model(model: keras.Model, config: TrainConfig, steps: int) -> None:
    """Compiles with an optimizer of their own for tables, projections and dense weights."""
    groups = {
        name: _optimizer(getattr(config, name), config.schedule, steps)
        for name in ("tables", "projections", "dense")
    }
    model.compile(optimizer=split_optimizer(**groups), steps_per_execution=config.steps_per_execution)


def train(
    model: keras.Model,
    train_rows: PackedRows,
    eval_rows: PackedRows,
    config: TrainConfig,
    work: Path,
    board: str,
) -> Progress:
    """Trains to the end, from the newest checkpoint in `work` if there is one.

    The order of the rows depends on seed and epoch alone, so a run that was killed and started again
    ends with the weights of one that was not.

    Args:
        model: A compiled model.
        train_rows: Rows to train on.
        eval_rows: Rows to evaluate on after each epoch.
        config: The training's part of the configuration.
        work: Folder for checkpoints.
        board: Folder for TensorBoard.

    Returns:
        Where training stands at the end.
    """
    progress = Progress()
    steps = total_steps(config, train_rows.rows)
    epoch_steps = train_rows.rows // config.batch_size
    model(next(iter(eval_rows.batches(1).map(lambda inputs, _: inputs))))
    model.optimizer.build(model.trainable_variables)
    # Their variables, one by one: tracking does not reach the parts of a MultiOptimizer.
    state = {"model": model.variables, "optimizer": model.optimizer.variables}
    checkpoint = tf.train.Checkpoint(
        **{name: [variable.value for variable in variables] for name, variables in state.items()},
        progress=_ProgressState(progress),
    )
    manager = tf.train.CheckpointManager(checkpoint, str(work / "checkpoints"), max_to_keep=2)
    best = tf.train.CheckpointManager(checkpoint, str(work / "best"), max_to_keep=1)
    if manager.latest_checkpoint:
        checkpoint.restore(manager.latest_checkpoint).assert_existing_objects_matched()
        logging.info("Resuming at epoch %d, step %d.", progress.epoch + 1, progress.step)
    with tf.summary.create_file_writer(board).as_default():
        while not progress.stopped and progress.epoch * epoch_steps + progress.step < steps:
            first = progress.step
            last = min(epoch_steps, steps - progress.epoch * epoch_steps)
            rows = train_rows.shuffled_batches(
                config.batch_size, config.seed + progress.epoch, config.shuffle_rows, first_step=first
            )
            callback = _Checkpointer(manager, progress, config.checkpoint_steps, first, last)
            started = time.monotonic()
            fitted = model.fit(
                rows, steps_per_epoch=last - first, shuffle=False, verbose=0, callbacks=[callback]
            )
            record = {
                "epoch": progress.epoch + 1,
                "loss": _loss(fitted.history),
                **evaluate(model, eval_rows),
            }
            record["seconds"] = time.monotonic() - started
            _finish_epoch(record, progress, config, best)
            manager.save()
    if best.latest_checkpoint and config.early_stopping_patience is not None:
        final = dataclasses.replace(progress)  # The best checkpoint brings its own progress.
        checkpoint.restore(best.latest_checkpoint)
        return final
    return progress


def evaluate(model: keras.Model, rows: PackedRows) -> dict[str, float]:
    """Logloss and AUC on all rows."""
    logloss, auc = keras.metrics.BinaryCrossentropy(), keras.metrics.AUC()

    @tf.function
    def step(inputs: Mapping[str, tf.Tensor], label: tf.Tensor) -> None:
        ctr = model(inputs, training=False)
        logloss.update_state(label[:, tf.newaxis], ctr[:, tf.newaxis])
        auc.update_state(label, ctr)

    for inputs, label in rows.batches(4096):
        step(inputs, label)
    return {"eval_logloss": float(logloss.result()), "eval_auc": float(auc.result())}


def _finish_epoch(
    record: dict[str, float], progress: Progress, config: TrainConfig, best: tf.train.CheckpointManager
) -> None:
    progress.history.append(record)
    progress.epoch, progress.step = progress.epoch + 1, 0
    for key, value in record.items():
        tf.summary.scalar(key, value, step=progress.epoch)
    logging.info("Epoch %s", ", ".join(f"{key} {value:.5g}" for key, value in record.items()))
    if record["eval_logloss"] < progress.best_logloss:
        progress.best_logloss, progress.stale_epochs = record["eval_logloss"], 0
        best.save()
    else:
        progress.stale_epochs += 1
        patience = config.early_stopping_patience
        progress.stopped = patience is not None and progress.stale_epochs > patience


class _Checkpointer(keras.callbacks.Callback):
    """Saves every `every` steps and shows progress: a bar on a terminal, plain lines in a log."""

    def __init__(
        self, manager: tf.train.CheckpointManager, progress: Progress, every: int, first: int, last: int
    ) -> None:
        super().__init__()
        self._manager, self._progress, self._every = manager, progress, every
        self._first, self._last = first, last
        self._saved, self._shown = first, 0.0

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        step = self._first + batch + 1
        self._progress.step = step
        if step - self._saved >= self._every and step < self._last:
            self._saved = step
            self._manager.save()
        self._show(step, logs or {})

    def _show(self, step: int, logs: Mapping[str, Any]) -> None:
        now = time.monotonic()
        terminal = sys.stderr.isatty()
        if step < self._last and now - self._shown < (0.2 if terminal else _LOG_SECONDS):
            return
        self._shown = now
        text = f"epoch {self._progress.epoch + 1}, step {step}/{self._last}, loss {_loss(logs):.4f}"
        if terminal:
            done = 30 * step // self._last
            print(
                f"\r    [{'#' * done}{'.' * (30 - done)}] {text}",
                end="" if step < self._last else "\n",
                file=sys.stderr,
            )
        else:
            print(f"    {text}", file=sys.stderr, flush=True)


def _loss(logs: Mapping[str, Any]) -> float:
    value = logs.get("loss", math.nan)
    return float(value[-1] if isinstance(value, Sequence) else value)


def _optimizer(config: OptimizerConfig, schedule: ScheduleConfig, steps: int) -> keras.optimizers.Optimizer:
    if schedule.decay == "none" and not schedule.warmup_steps:
        return _OPTIMIZERS[config.name](learning_rate=config.learning_rate)
    return _OPTIMIZERS[config.name](
        learning_rate=WarmupDecay(config.learning_rate, schedule.warmup_steps, schedule.decay, steps)
    )


@keras.saving.register_keras_serializable(package="mlet_tf")
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a decay to zero at the last step.

    Args:
        peak: Learning rate at the end of the warm-up.
        warmup_steps: Steps of warm-up.
        decay: `none`, `linear` or `cosine`.
        steps: Steps of the whole training.
    """

    def __init__(self, peak: float, warmup_steps: int, decay: str, steps: int) -> None:
        """See the class."""
        self.peak, self.warmup_steps, self.decay, self.steps = peak, warmup_steps, decay, steps

    def __call__(self, step: Any) -> Any:
        """Learning rate of a step, a scalar."""
        step = keras.ops.cast(step, "float32")
        warm = keras.ops.minimum(1.0, (step + 1) / max(1, self.warmup_steps))
        span = max(1, self.steps - self.warmup_steps)
        done = keras.ops.clip((step - self.warmup_steps) / span, 0.0, 1.0)
        factors = {
            "none": done * 0 + 1,
            "linear": 1 - done,
            "cosine": 0.5 * (1 + keras.ops.cos(math.pi * done)),
        }
        return self.peak * warm * factors[self.decay]

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "peak": self.peak,
            "warmup_steps": self.warmup_steps,
            "decay": self.decay,
            "steps": self.steps,
        }
