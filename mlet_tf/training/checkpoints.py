"""Checkpoints of model, optimizer and progress together, in step with the other processes of a training."""

import dataclasses
import json

import keras
import tensorflow as tf

from mlet_tf.distributed import Workers


@dataclasses.dataclass
class Progress:
    """Where training stands; stored with each checkpoint.

    Attributes:
        epoch: Epochs that are complete.
        step: Steps of the current epoch that are complete.
        best_epoch: The best epoch so far by the metric of early stopping, counted from 1; 0 before the first.
        final_epoch: The epoch whose weights the training has ended with; 0 before its end.
        stopped: Whether early stopping has ended the training.
        history: A record an epoch: `epoch`, `loss`, `eval_logloss`, `eval_auc`, `seconds`.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    final_epoch: int = 0
    stopped: bool = False
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def record(self, epoch: int) -> dict[str, float]:
        """The record of an epoch in `history`."""
        return next(record for record in self.history if record["epoch"] == epoch)


class _ProgressState(tf.train.experimental.PythonState):
    """Stores a `Progress` in the same TensorFlow checkpoint as the weights."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def serialize(self) -> str:
        return json.dumps(dataclasses.asdict(self.progress))

    def deserialize(self, string_value: str | bytes) -> None:
        for key, value in json.loads(string_value).items():
            setattr(self.progress, key, value)


class Checkpoints:
    """This process's checkpoints of model, optimizer and progress, in step with those of the other processes.

    Args:
        model: A model whose variables, and those of its optimizer, exist.
        progress: Where training stands; overwritten by a restore.
        work: Folder.
        workers: The processes that train together.
    """

    def __init__(self, model: keras.Model, progress: Progress, work: str, workers: Workers) -> None:
        # By number, so that the names a Keras release gives to its attributes do not matter.
        state = {"model": model.variables, "optimizer": model.optimizer.variables}
        self._checkpoint = tf.train.Checkpoint(
            **{name: [variable.value for variable in variables] for name, variables in state.items()},
            progress=_ProgressState(progress),
        )
        self._workers, self._progress = workers, progress
        self._newest = tf.train.CheckpointManager(self._checkpoint, f"{work}/checkpoints", max_to_keep=2)
        self._best = tf.train.CheckpointManager(self._checkpoint, f"{work}/best", max_to_keep=1)

    def save(self) -> None:
        """Saves the current state."""
        self._newest.save()

    def save_best(self) -> None:
        """Keeps the state as the best so far."""
        self._best.save()

    def restore_newest(self) -> bool:
        """Restores the newest state that all processes have; False if there is none."""
        # A process may have been killed before it saved what others had. It is one behind at most, as they wait for
        # each other in every step. Numbers count up with the steps, so the same number is the same state.
        paths = {int(path.rsplit("-", 1)[1]): path for path in self._newest.checkpoints}
        common = self._workers.agree(list(paths))
        if common:
            self._checkpoint.restore(paths[common[-1]]).assert_existing_objects_matched()
        return bool(common)

    def restore_best(self) -> None:
        """Restores the best state, but for the progress, which stays where training has ended."""
        end = dataclasses.replace(self._progress)
        self._checkpoint.restore(self._best.latest_checkpoint)
        vars(self._progress).update(vars(end))
