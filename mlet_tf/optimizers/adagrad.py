"""Adagrad with an accumulator per weight or per row."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mlet_tf.optimizers._table_rates import per_row
from mlet_tf.optimizers.base import SparseOptimizer, _rows


class _AdagradBase(SparseOptimizer):
    """Arguments and configuration that both kinds of Adagrad share."""

    def __init__(
        self, learning_rate: Any, initial_accumulator_value: float, epsilon: float, l2: float, **kwargs: Any
    ) -> None:
        if initial_accumulator_value < 0:
            raise ValueError(
                "`initial_accumulator_value` should be >= 0. "
                f"Received: initial_accumulator_value={initial_accumulator_value}"
            )
        if epsilon <= 0:
            raise ValueError(f"`epsilon` should be > 0. Received: epsilon={epsilon}")
        super().__init__(learning_rate=learning_rate, l2=l2, **kwargs)
        self.initial_accumulator_value = initial_accumulator_value
        self.epsilon = epsilon

    def _starting_value(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Initializer of the state; Keras's `Constant` would hold two more copies of it for a while."""
        return ops.full(shape, self.initial_accumulator_value, dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
        }


@keras.saving.register_keras_serializable(package="mlet_tf")
class SparseAdagrad(_AdagradBase):
    """Adagrad on the touched rows.

    With `g` the summed gradient of a touched row::

        accumulator += g ** 2
        row -= learning_rate * g / (sqrt(accumulator) + epsilon)

    It uses TensorFlow's `ResourceSparseApplyAdagradV2`. `keras.optimizers.Adagrad` has epsilon inside the root, and
    makes sparse gradients dense.

    Args:
        learning_rate: Float, schedule, or callable.
        initial_accumulator_value: Starting value of the accumulators.
        epsilon: Added to the root, > 0.
        l2: Coefficient of the L2 penalty on touched rows.
        **kwargs: See `SparseOptimizer`.

    References:
        Duchi et al., 2011, Adaptive Subgradient Methods (JMLR 12).
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        l2: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, initial_accumulator_value, epsilon, l2, **kwargs)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates an accumulator of each variable's shape."""
        if self.built:
            return
        super().build(variables)
        self._accumulators = self.add_optimizer_variables(
            variables, "accumulator", initializer=self._starting_value
        )

    def _row_step(self, rows: Any, values: Any, variable: keras.Variable, index: int, rate: Any) -> None:
        accumulator = self._accumulators[index]
        # The fused operation takes one rate for all rows.
        if _rows.in_xla() or rate.shape.rank:
            _rows.add(accumulator, rows, ops.square(values))
            root = ops.sqrt(_rows.gather(accumulator, rows))
            _rows.subtract(variable, rows, rate * values / (root + self.epsilon))
        else:
            _rows.sparse_adagrad(variable, accumulator, rows, values, rate, self.epsilon)

    def _dense_step(
        self, gradient: Any, variable: keras.Variable, index: int, rate: Any, touched: Any
    ) -> None:
        accumulator = self._accumulators[index]
        if _rows is not None and not rate.shape.rank:
            _rows.dense_adagrad(variable, accumulator, gradient, rate, self.epsilon)
            return
        self.assign_add(accumulator, ops.square(gradient))
        self.assign_sub(variable, rate * gradient / (ops.sqrt(accumulator) + self.epsilon))


@keras.saving.register_keras_serializable(package="mlet_tf")
class RowWiseAdagrad(_AdagradBase):
    """Adagrad with one accumulator per row, on the touched rows.

    With `g` the summed gradient of a touched row::

        accumulator += mean(g ** 2)
        row -= learning_rate * g / (sqrt(accumulator) + epsilon)

    The mean is over the row, as in FBGEMM's `EXACT_ROWWISE_ADAGRAD` and torchrec's `RowWiseAdagrad`, and so are
    the defaults of epsilon and of the starting value. The state of a `[V, k]` table is `[V]`, k times smaller
    than Adagrad's. A row is an entry of the first axis: for a vector this is plain Adagrad, and a matrix
    `[m, n]` gets m accumulators. Use it for tables, and `split_optimizer` for the rest of the model.

    Args:
        learning_rate: Float, schedule, or callable.
        initial_accumulator_value: Starting value of the accumulators.
        epsilon: Added to the root, > 0.
        l2: Coefficient of the L2 penalty on touched rows.
        **kwargs: See `SparseOptimizer`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        initial_accumulator_value: float = 0.0,
        epsilon: float = 1e-8,
        l2: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, initial_accumulator_value, epsilon, l2, **kwargs)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates one accumulator per row of each variable."""
        if self.built:
            return
        super().build(variables)
        self._accumulators = [
            self.add_variable(
                shape=tuple(variable.shape[:1]),
                initializer=self._starting_value,
                dtype=variable.dtype,
                name=f"{variable.path.replace('/', '_')}_row_accumulator",
            )
            for variable in variables
        ]

    def _row_step(self, rows: Any, values: Any, variable: keras.Variable, index: int, rate: Any) -> None:
        accumulator = self._accumulators[index]
        _rows.add(accumulator, rows, _mean_square(values))
        root = ops.sqrt(_rows.gather(accumulator, rows))
        _rows.subtract(variable, rows, rate * values / per_row(root + self.epsilon, values))

    def _dense_step(
        self, gradient: Any, variable: keras.Variable, index: int, rate: Any, touched: Any
    ) -> None:
        accumulator = self._accumulators[index]
        self.assign_add(accumulator, _mean_square(gradient))
        root = ops.sqrt(accumulator)
        self.assign_sub(variable, rate * gradient / per_row(root + self.epsilon, gradient))


def _mean_square(values: Any) -> Any:
    squares = ops.square(values)
    axes = tuple(range(1, len(values.shape)))
    return ops.mean(squares, axis=axes) if axes else squares
