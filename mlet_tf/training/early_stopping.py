"""Early stopping: how many epochs a training takes, and whose weights it ends with."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import keras
import numpy as np

from mlet_tf.config import TrainConfig
from mlet_tf.training.checkpoints import Progress


class BestWeights(Protocol):
    """Where the weights of the best epoch are kept."""

    def save_best(self) -> None:
        """Keeps the state as the best so far."""

    def restore_best(self) -> None:
        """Takes the weights of the best epoch; called only after `save_best`."""


class WeightsInMemory:
    """`BestWeights` of a training that leaves nothing on disk.

    Args:
        model: A model whose variables exist.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._weights: list[np.ndarray] = []

    def save_best(self) -> None:
        """Copies the weights."""
        self._weights = self._model.get_weights()

    def restore_best(self) -> None:
        """Writes the copy back."""
        self._model.set_weights(self._weights)


class EarlyStopping:
    """Judges each epoch, keeps the best weights, and stops a training that gets no better.

    Without `train.early_stopping_patience` it only takes notes, and the last weights are those of the training.

    Args:
        config: The training's part of the configuration.
        progress: Where training stands; `history`, `best_epoch` and `stopped` are updated.
        best: Where the best weights are kept.
    """

    def __init__(self, config: TrainConfig, progress: Progress, best: BestWeights) -> None:
        self._patience, self._metric = config.early_stopping_patience, config.early_stopping_metric
        self._progress, self._best = progress, best

    def judge(self, record: dict[str, Any]) -> None:
        """Takes what an epoch has reached: `epoch`, `eval_logloss`, `eval_auc` and whatever else is recorded."""
        progress = self._progress
        best = progress.record(progress.best_epoch) if progress.best_epoch else None
        progress.history.append(record)
        if best is None or self._is_better(record, best):
            progress.best_epoch = progress.epoch
            if self._patience is not None:
                self._best.save_best()
        elif self._patience is not None:
            progress.stopped = progress.epoch - progress.best_epoch > self._patience

    def end(self) -> None:
        """Takes the best weights, where there is a patience, and notes of which epoch the weights are."""
        progress = self._progress
        progress.final_epoch = progress.epoch
        if self._patience is not None and progress.best_epoch:
            self._best.restore_best()
            progress.final_epoch = progress.best_epoch

    def _is_better(self, record: Mapping[str, float], best: Mapping[str, float]) -> bool:
        value, reached = record[f"eval_{self._metric}"], best[f"eval_{self._metric}"]
        if math.isnan(value) or math.isnan(reached):
            return not math.isnan(value)
        return value > reached if self._metric == "auc" else value < reached
