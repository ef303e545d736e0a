"""The training loop: resumable, in one order of the rows, on one device, several or several hosts."""

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from mlet_tf.config import TrainConfig
from mlet_tf.distributed import Cluster, Workers
from mlet_tf.errors import InputError
from mlet_tf.features.packing import PackedRows
from mlet_tf.progress import ProgressLine


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


def train(
    model: keras.Model,
    train_rows: PackedRows,
    eval_rows: PackedRows,
    config: TrainConfig,
    work: str | Path,
    board: str,
    workers: Workers | None = None,
) -> Progress:
    """Trains to the end, from the newest checkpoint in `work` if there is one.

    The order of the rows depends on seed and epoch alone, so a run that was killed and started again
    ends with the weights of one that was not. Of several processes each has a folder for its own checkpoints; they
    go on from the newest that all of them have.

    Args:
        model: A compiled model, made in the scope of the strategy in force.
        train_rows: Rows to train on.
        eval_rows: Rows to evaluate on after each epoch; every process evaluates all of them.
        config: The training's part of the configuration.
        work: Folder for this process's checkpoints.
        board: Folder for TensorBoard, written by the chief.
        workers: The processes that train together.

    Returns:
        Where training stands at the end.
    """
    workers = Workers(Cluster()) if workers is None else workers
    if config.batch_size % workers.size:
        raise InputError(
            f"'train.batch_size' should be a multiple of the {workers.size} workers. Received: {config.batch_size}"
        )
    steps = total_steps(config, train_rows.rows)
    epoch_steps = train_rows.rows // config.batch_size
    model(next(iter(eval_rows.batches(1).map(lambda inputs, _: inputs))))
    model.optimizer.build(model.trainable_variables)
    progress = Progress()
    checkpoints = Checkpoints(model, progress, str(work), workers)
    if checkpoints.restore_newest():
        logging.info("Resuming at epoch %d, step %d.", progress.epoch + 1, progress.step)
    fit = _fit_mirrored if _many_hosts() else _fit
    # With the same model everywhere TensorFlow divides the batches.
    part = (0, 1) if _many_hosts() else (workers.rank, workers.size)
    with _writer(board, workers):
        while not progress.stopped and progress.epoch * epoch_steps + progress.step < steps:
            first = progress.step
            last = min(epoch_steps, steps - progress.epoch * epoch_steps)
            rows = train_rows.shuffled_batches(
                config.batch_size, config.seed + progress.epoch, config.shuffle_rows, first, part
            )
            callback = _Checkpointer(checkpoints, progress, config.checkpoint_steps, first, last)
            started = time.monotonic()
            loss = fit(model, rows, last - first, callback)
            record = {"epoch": progress.epoch + 1, "loss": loss, **evaluate(model, eval_rows)}
            # The same to the last bit everywhere, since it decides when to stop.
            record = {key: workers.mean(value) for key, value in record.items()}
            record["seconds"] = time.monotonic() - started
            _finish_epoch(record, progress, config, checkpoints)
            checkpoints.save()
    if config.early_stopping_patience is not None:
        final = dataclasses.replace(progress)  # The best checkpoint brings its own progress.
        checkpoints.restore_best()
        return final
    return progress


class Checkpoints:
    """This process's checkpoints of model, optimizer and progress, in step with those of the other processes.

    Args:
        model: A model whose variables, and those of its optimizer, are made.
        progress: Where training stands; overwritten by a restore.
        work: Folder.
        workers: The processes that train together.
    """

    def __init__(self, model: keras.Model, progress: Progress, work: str, workers: Workers) -> None:
        """See the class."""
        # By number, so that the names a Keras release gives to its attributes do not matter.
        state = {"model": model.variables, "optimizer": model.optimizer.variables}
        self._checkpoint = tf.train.Checkpoint(
            **{name: [variable.value for variable in variables] for name, variables in state.items()},
            progress=_ProgressState(progress),
        )
        self._workers = workers
        self._newest = tf.train.CheckpointManager(self._checkpoint, f"{work}/checkpoints", max_to_keep=2)
        self._best = tf.train.CheckpointManager(self._checkpoint, f"{work}/best", max_to_keep=1)

    def save(self) -> None:
        """Saves the state as it is."""
        self._newest.save()

    def save_best(self) -> None:
        """Keeps the state as the best so far."""
        self._best.save()

    def restore_newest(self) -> bool:
        """Goes to the newest state that all processes have; False where there is none."""
        # A process may have been killed before it saved what others had. It is one behind at most, as they wait for
        # each other in every step. Numbers count up with the steps, so the same number is the same state.
        paths = {int(path.rsplit("-", 1)[1]): path for path in self._newest.checkpoints}
        common = self._workers.agree(list(paths))
        if common:
            self._checkpoint.restore(paths[common[-1]]).assert_existing_objects_matched()
        return bool(common)

    def restore_best(self) -> None:
        """Goes to the best state."""
        if self._best.latest_checkpoint:
            self._checkpoint.restore(self._best.latest_checkpoint)


def _writer(board: str, workers: Workers) -> Any:
    writer = tf.summary.create_file_writer(board) if workers.is_chief else tf.summary.create_noop_writer()
    return writer.as_default()


def _many_hosts() -> bool:
    """Whether a strategy over several hosts is in force."""
    return isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy)


def _fit(model: keras.Model, rows: tf.data.Dataset, steps: int, callback: "_Checkpointer") -> float:
    """Trains some steps; returns their mean loss."""
    fitted = model.fit(rows, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[callback])
    return _loss(fitted.history)


def _fit_mirrored(model: keras.Model, rows: tf.data.Dataset, steps: int, callback: "_Checkpointer") -> float:
    """The same over several hosts, where `fit` of Keras 3.15 fails: it reduces batches and metrics as arrays."""
    strategy = tf.distribute.get_strategy()
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA

    @tf.function
    def step(iterator: Any) -> Any:
        return strategy.run(model.train_step, args=(next(iterator),))["loss"]

    model.reset_metrics()
    iterator = iter(strategy.experimental_distribute_dataset(rows.with_options(options)))
    for number in range(steps):
        own = strategy.experimental_local_results(step(iterator))[0]
        callback.on_train_batch_end(number, {"loss": own})
    return float(next(metric for metric in model.metrics if metric.name == "loss").result())


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
    record: dict[str, float], progress: Progress, config: TrainConfig, checkpoints: Checkpoints
) -> None:
    progress.history.append(record)
    progress.epoch, progress.step = progress.epoch + 1, 0
    for key, value in record.items():
        tf.summary.scalar(key, value, step=progress.epoch)
    values = ", ".join(f"{key} {value:.5g}" for key, value in record.items() if key != "epoch")
    logging.info("Epoch %d: %s", record["epoch"], values)
    if record["eval_logloss"] < progress.best_logloss:
        progress.best_logloss, progress.stale_epochs = record["eval_logloss"], 0
        checkpoints.save_best()
    else:
        progress.stale_epochs += 1
        patience = config.early_stopping_patience
        progress.stopped = patience is not None and progress.stale_epochs > patience


class _Checkpointer(keras.callbacks.Callback):
    """Saves every `every` steps and shows progress."""

    def __init__(
        self, checkpoints: Checkpoints, progress: Progress, every: int, first: int, last: int
    ) -> None:
        super().__init__()
        self._checkpoints, self._progress, self._every = checkpoints, progress, every
        self._first, self._last = first, last
        self._saved, self._shown = first, ProgressLine()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        step = self._first + batch + 1
        self._progress.step = step
        if step - self._saved >= self._every and step < self._last:
            self._saved = step
            self._checkpoints.save()
        epoch = self._progress.epoch + 1
        self._shown.show(
            step, self._last, lambda: f"epoch {epoch}, step {step}/{self._last}, loss {_loss(logs or {}):.4f}"
        )


def _loss(logs: Mapping[str, Any]) -> float:
    value = logs.get("loss", math.nan)
    return float(value[-1] if isinstance(value, Sequence) else value)
