"""Adam whose moments move only for the touched rows."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mlet_tf.optimizers.base import SparseOptimizer, _rows


@keras.saving.register_keras_serializable(package="mlet_tf")
class LazyAdam(SparseOptimizer):
    """Adam on the touched rows.

    With `g` the summed gradient of a touched row and `t` the step::

        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g ** 2
        row -= learning_rate * sqrt(1 - beta_2 ** t) / (1 - beta_1 ** t) * m / (sqrt(v) + epsilon)

    Untouched rows keep their moments and weights; Adam would decay the moments and keep moving the rows. For
    variables that are not tables this is `keras.optimizers.Adam`.

    Args:
        learning_rate: Float, schedule, or callable.
        beta_1: Decay of the first moment, in [0, 1).
        beta_2: Decay of the second moment, in [0, 1).
        epsilon: Added to the root, > 0.
        l2: Coefficient of the L2 penalty on touched rows.
        **kwargs: See `SparseOptimizer`.

    References:
        Kingma and Ba, 2015, Adam (arXiv 1412.6980).
    """

    _needs_touched = True

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        l2: float = 0.0,
        **kwargs: Any,
    ) -> None:
        for name, value in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0 <= value < 1:
                raise ValueError(f"`{name}` should be in [0, 1). Received: {name}={value}")
        if epsilon <= 0:
            raise ValueError(f"`epsilon` should be > 0. Received: epsilon={epsilon}")
        super().__init__(learning_rate=learning_rate, l2=l2, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates two moments of each variable's shape."""
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(variables, ["momentum", "velocity"])

    def _row_step(self, rows: Any, values: Any, variable: keras.Variable, index: int, rate: Any) -> None:
        momentum, velocity = self._momentums[index], self._velocities[index]
        m, v, step = self._moments(
            _rows.gather(momentum, rows), _rows.gather(velocity, rows), values, variable, rate
        )
        _rows.overwrite(momentum, rows, m)
        _rows.overwrite(velocity, rows, v)
        _rows.subtract(variable, rows, step)

    def _dense_step(
        self, gradient: Any, variable: keras.Variable, index: int, rate: Any, touched: Any
    ) -> None:
        momentum, velocity = self._momentums[index], self._velocities[index]
        old_m, old_v = ops.convert_to_tensor(momentum), ops.convert_to_tensor(velocity)
        m, v, step = self._moments(old_m, old_v, gradient, variable, rate)
        if touched is not None:
            m, v = ops.where(touched, m, old_m), ops.where(touched, v, old_v)
            step = ops.where(touched, step, ops.zeros_like(step))
        self.assign(momentum, m)
        self.assign(velocity, v)
        self.assign_sub(variable, step)

    def _moments(self, m: Any, v: Any, gradient: Any, variable: Any, rate: Any) -> tuple[Any, Any, Any]:
        step = ops.cast(self.iterations + 1, variable.dtype)
        correction = ops.sqrt(1 - ops.power(self.beta_2, step)) / (1 - ops.power(self.beta_1, step))
        m = self.beta_1 * m + (1 - self.beta_1) * gradient
        v = self.beta_2 * v + (1 - self.beta_2) * ops.square(gradient)
        return m, v, rate * correction * m / (ops.sqrt(v) + self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        config = {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        return {**super().get_config(), **config}
