"""The training loop: resumable, with a fixed order of rows, on one device, several, or several hosts."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from mlet_tf.config import TrainConfig
from mlet_tf.distributed import Cluster, Workers
from mlet_tf.errors import InputError
from mlet_tf.features.packed_rows import PackedRows
from mlet_tf.progress import ProgressLine
from mlet_tf.training.checkpoints import Checkpoints, Progress
from mlet_tf.training.early_stopping import EarlyStopping
from mlet_tf.training.evaluation import Predictor
from mlet_tf.training.learned import judge

# Returns the batches of an epoch from a step on: `(epoch, first_step)`, both counted from 0.
EpochBatches = Callable[[int, int], tf.data.Dataset]


def steps_an_epoch(rows: int, batch_size: int) -> int:
    """Steps of one epoch; rows that do not fill a batch are left out of it.

    Raises:
        InputError: If there are fewer rows than a batch takes.
    """
    if rows < batch_size:
        raise InputError(f"'train.batch_size' is {batch_size}, but the train split has only {rows} rows")
    return rows // batch_size


def total_steps(config: TrainConfig, rows: int) -> int:
    """Steps of the whole training.

    Raises:
        InputError: If there are fewer rows than a batch takes.
    """
    steps = steps_an_epoch(rows, config.rows_a_step) * config.epochs
    return min(steps, config.max_steps or steps)


def fit_epochs(
    model: keras.Model,
    batches: EpochBatches,
    epoch_steps: int,
    steps: int,
    progress: Progress,
    callback: Callable[[int, int], keras.callbacks.Callback] | None = None,
    end_epoch: Callable[[float, float], None] | None = None,
) -> None:
    """Trains from `progress` to the end, and updates it.

    Args:
        model: A compiled model.
        batches: The rows.
        epoch_steps: Steps of an epoch.
        steps: Steps of the whole training; the last epoch may be a partial one.
        progress: Where training stands; `stopped` ends it.
        callback: Makes the callback of an epoch, given its first step and the one after its last.
        end_epoch: Called after each epoch with its mean loss and the time, in seconds, when it began.
    """
    fit = _fit_mirrored if many_hosts() else _fit
    while not progress.stopped and progress.epoch * epoch_steps + progress.step < steps:
        first, last = progress.step, min(epoch_steps, steps - progress.epoch * epoch_steps)
        rows = batches(progress.epoch, first).take(last - first)
        started = time.monotonic()
        loss = fit(model, rows, last - first, [callback(first, last)] if callback else [])
        progress.epoch, progress.step = progress.epoch + 1, 0
        if end_epoch:
            end_epoch(loss, started)


def train(
    model: keras.Model,
    train_rows: PackedRows,
    eval_rows: PackedRows,
    config: TrainConfig,
    work: str | Path,
    board: str,
    workers: Workers | None = None,
    must_learn: bool = True,
) -> Progress:
    """Trains to the end, from the newest checkpoint in `work` if there is one.

    The order of the rows depends on seed and epoch alone, so a run that was killed and resumed ends with the same
    weights as an undisturbed one. Of several processes each has a folder for its own checkpoints; they resume from
    the newest that all of them have.

    Args:
        model: A compiled model, made in the scope of the strategy in force.
        train_rows: Rows to train on.
        eval_rows: Rows to evaluate on after each epoch; every process evaluates all of them.
        config: The training's part of the configuration.
        work: Folder for this process's checkpoints.
        board: Folder for TensorBoard, written by the chief.
        workers: The processes that train together.
        must_learn: Whether a model that has not learned anything is an error, see `mlet_tf.training.learned`; otherwise
            it is logged.

    Returns:
        Where training stands at the end.

    Raises:
        InputError: The batch size does not fit the rows or the processes, or the model has not learned anything.
    """
    workers = Workers(Cluster()) if workers is None else workers
    if config.rows_a_step % workers.size:
        raise InputError(
            f"'train.batch_size' should be a multiple of the {workers.size} workers. Received: {config.batch_size}"
        )
    # With the same model everywhere TensorFlow divides the batches.
    part = (0, 1) if many_hosts() else (workers.rank, workers.size)
    model(next(eval_rows.blocks(1)))
    model.optimizer.build(model.trainable_variables)
    predictor, progress = Predictor(model), Progress()
    checkpoints = Checkpoints(model, progress, str(work), workers)
    stopping = EarlyStopping(config, progress, checkpoints)
    if checkpoints.restore_newest():
        logging.info("Resuming at epoch %d, step %d.", progress.epoch + 1, progress.step)

    def batches(epoch: int, first: int) -> tf.data.Dataset:
        return train_rows.shuffled_batches(
            config.rows_a_step, config.seed + epoch, config.shuffle_rows, first, part
        )

    def callback(first: int, last: int) -> keras.callbacks.Callback:
        return _Checkpointer(checkpoints, progress, config.checkpoint_steps, first, last)

    def end_epoch(loss: float, started: float) -> None:
        found = predictor.metrics(eval_rows)
        record = {
            "epoch": progress.epoch,
            "loss": loss,
            "eval_logloss": found["logloss"],
            "eval_auc": found["auc"],
        }
        # Bitwise equal in all processes, because it decides when to stop.
        record = {key: workers.mean(value) for key, value in record.items()}
        record["seconds"] = time.monotonic() - started
        _show_epoch(record)
        stopping.judge(record)
        checkpoints.save()

    with _writer(board, workers):
        epoch_steps = steps_an_epoch(train_rows.rows, config.rows_a_step)
        steps = total_steps(config, train_rows.rows)
        fit_epochs(model, batches, epoch_steps, steps, progress, callback, end_epoch)
    stopping.end()
    _check_learned(progress, eval_rows, must_learn)
    return progress


def many_hosts() -> bool:
    """Whether a strategy over several hosts is in force."""
    return isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy)


def _writer(board: str, workers: Workers) -> contextlib.AbstractContextManager[Any]:
    writer = tf.summary.create_file_writer(board) if workers.is_chief else tf.summary.create_noop_writer()
    return writer.as_default()


def _fit(
    model: keras.Model, rows: tf.data.Dataset, steps: int, callbacks: list[keras.callbacks.Callback]
) -> float:
    """Trains some steps; returns their mean loss."""
    fitted = model.fit(rows, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=callbacks)
    return _loss(fitted.history)


def _fit_mirrored(
    model: keras.Model, rows: tf.data.Dataset, steps: int, callbacks: list[keras.callbacks.Callback]
) -> float:
    """`_fit` over several hosts, where Keras 3.15's `fit` fails: it reduces batches and metrics as arrays."""
    strategy = tf.distribute.get_strategy()
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA

    @tf.function
    def step(iterator: Iterator[Any]) -> Mapping[str, tf.Tensor]:
        return strategy.run(model.train_step, args=(next(iterator),))["loss"]

    model.reset_metrics()
    iterator = iter(strategy.experimental_distribute_dataset(rows.with_options(options)))
    for number in range(steps):
        own = strategy.experimental_local_results(step(iterator))[0]
        for callback in callbacks:
            callback.on_train_batch_end(number, {"loss": own})
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return float(next(metric for metric in model.metrics if metric.name == "loss").result())


def _check_learned(progress: Progress, eval_rows: PackedRows, must_learn: bool) -> None:
    reached = progress.record(progress.final_epoch)
    verdict = judge(eval_rows.label, reached["eval_auc"], reached["eval_logloss"])
    if verdict.fault and must_learn:
        raise InputError(f"the trained model {verdict}")
    if verdict.fault:
        logging.warning("The trained model %s", verdict)


def _show_epoch(record: Mapping[str, float]) -> None:
    for key, value in record.items():
        tf.summary.scalar(key, value, step=int(record["epoch"]))
    values = ", ".join(f"{key} {value:.5g}" for key, value in record.items() if key != "epoch")
    logging.info("Epoch %d: %s", record["epoch"], values)


class _Checkpointer(keras.callbacks.Callback):
    """Saves every `every` steps and shows progress."""

    def __init__(
        self, checkpoints: Checkpoints, progress: Progress, every: int, first: int, last: int
    ) -> None:
        super().__init__()
        self._checkpoints, self._progress, self._every = checkpoints, progress, every
        self._first, self._last = first, last
        self._saved, self._line = first, ProgressLine()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        step = self._first + batch + 1
        self._progress.step = step
        if step - self._saved >= self._every and step < self._last:
            self._saved = step
            self._checkpoints.save()
        epoch = self._progress.epoch + 1
        self._line.show(
            step, self._last, lambda: f"epoch {epoch}, step {step}/{self._last}, loss {_loss(logs or {}):.4f}"
        )


def _loss(logs: Mapping[str, Any]) -> float:
    value = logs.get("loss", math.nan)
    return float(value[-1] if isinstance(value, Sequence) else value)
