"""Stochastic gradient descent without momentum."""

from typing import Any

import keras

from mlet_tf.optimizers.base import SparseOptimizer, _rows


@keras.saving.register_keras_serializable(package="mlet_tf")
class SparseSGD(SparseOptimizer):
    """Gradient descent on the touched rows: `row -= learning_rate * gradient`.

    It keeps no state, but for `weight_decay` of tables. Momentum is left out on purpose: its decay would have to
    reach untouched rows.

    Args:
        learning_rate: Float, schedule, or callable.
        l2: Coefficient of the L2 penalty on touched rows.
        **kwargs: See `SparseOptimizer`.

    Example:
    >>> optimizer = mlet_tf.optimizers.SparseSGD(0.1)
    >>> model.compile(optimizer, loss="binary_crossentropy", jit_compile=False)
    """

    _sums_duplicates = False

    def __init__(self, learning_rate: Any = 0.01, l2: float = 0.0, **kwargs: Any) -> None:
        super().__init__(learning_rate=learning_rate, l2=l2, **kwargs)

    def _row_step(self, rows: Any, values: Any, variable: Any, index: int, rate: Any) -> None:
        _rows.subtract(variable, rows, rate * values)

    def _dense_step(self, gradient: Any, variable: Any, index: int, rate: Any, touched: Any) -> None:
        self.assign_sub(variable, rate * gradient)
