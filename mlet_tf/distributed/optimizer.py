"""Averaging the gradients of several processes."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from mlet_tf.distributed.workers import Workers
from mlet_tf.layers import variable_role
from mlet_tf.optimizers.split import RoleOptimizerMap, SplitOptimizer
from mlet_tf.types import Gradient


class AveragingOptimizer(SplitOptimizer):
    """A `SplitOptimizer` for a model whose tables are divided over processes; made by `averaged`.

    The loss of a batch is the mean of the losses of its parts, one per process. The gradient of a divided table is
    already the sum over the parts. The gradients of all other variables are summed in one exchange per step, as one
    tensor. Then all are divided by the number of processes.

    Args:
        optimizer_map: See `SplitOptimizer`.
        workers: The processes.
        **kwargs: Arguments of `keras.optimizers.MultiOptimizer`.
    """

    def __init__(self, optimizer_map: RoleOptimizerMap, workers: Workers, **kwargs: Any) -> None:
        super().__init__(optimizer_map, **kwargs)
        self._workers = workers

    def apply(
        self, grads: Sequence[Gradient | None], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        """Applies one gradient per variable."""
        variables = self._trainable_variables if trainable_variables is None else trainable_variables
        roles = [variable_role(variable) for variable in variables]
        shared = [i for i, role in enumerate(roles) if role != "table" and grads[i] is not None]
        grads = list(grads)
        for i, gradient in zip(shared, self._summed([grads[i] for i in shared]), strict=True):
            grads[i] = gradient
        super().apply([_divided(gradient, self._workers.size) for gradient in grads], trainable_variables)

    def _summed(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        flat = tf.concat([tf.reshape(g, [-1]) for g in gradients], 0)
        parts = tf.split(self._workers.total(flat), [g.shape.num_elements() for g in gradients])
        return [tf.reshape(part, g.shape) for part, g in zip(parts, gradients, strict=True)]


def averaged(optimizer: SplitOptimizer, workers: Workers) -> SplitOptimizer:
    """The equivalent optimizer, not yet built, for a model whose tables are divided over `workers`."""
    return optimizer if workers.size == 1 else AveragingOptimizer(optimizer._optimizer_map, workers)


def _divided(gradient: Gradient | None, count: int) -> Gradient | None:
    if gradient is None or not isinstance(gradient, tf.IndexedSlices):
        return gradient if gradient is None else gradient / count
    return tf.IndexedSlices(gradient.values / count, gradient.indices, gradient.dense_shape)
