"""Common code of the sparse optimizers: rows to update, decay, clipping, learning-rate multipliers."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mlet_tf.layers.roles import variable_role

if keras.backend.backend() == "tensorflow":
    from mlet_tf.optimizers import _rows
else:
    _rows = None  # type: ignore[assignment]


class SparseOptimizer(keras.optimizers.Optimizer):
    """Base of the optimizers that update only touched rows.

    A row is touched if the gradient names it (`tf.IndexedSlices`) or, for a dense gradient of a table, if its
    gradient is not zero. Weight decay and L2 act on the touched rows of a table, and on every element of the
    other variables. A table is a variable with `variable_role(variable) == "table"`.

    A variable's attribute `mlet_lr_multiplier` (default 1) scales its learning rate. If a variable carries
    `mlet_unique_slices = True`, its layer promises slices without repeated rows and summing them is skipped.

    Under `jit_compile=True` the fused sparse ops, for which XLA has no kernels, are replaced by gathers and
    scatters with the same result. They are slower, so keep `jit_compile=False` for large tables. `use_ema`,
    `gradient_accumulation_steps` and constraints are Keras's own code and cost a pass over the whole table.

    Args:
        learning_rate: Float, schedule, or callable.
        l2: Coefficient of the L2 penalty `l2 / 2 * ||row||^2`; its gradient is added before the update rule.
        **kwargs: Arguments of `keras.optimizers.Optimizer`, such as `weight_decay` (decoupled: each touched row
            shrinks by `learning_rate * weight_decay`), `clipnorm` or `global_clipnorm`.
    """

    loss_scale_factor: float | None  # Keras sets it.

    def __init__(self, learning_rate: Any, l2: float = 0.0, **kwargs: Any) -> None:
        if l2 < 0:
            raise ValueError(f"`l2` should be >= 0. Received: l2={l2}")
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.l2 = l2

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Applies one gradient per variable."""
        factor = self.loss_scale_factor
        if factor is None or _rows is None:
            return super().apply(grads, trainable_variables)
        # Keras divides with `/`, which tf.IndexedSlices does not have.
        grads = [None if g is None else _rows.divide(g, factor) for g in grads]
        self.loss_scale_factor = None
        try:
            return super().apply(grads, trainable_variables)
        finally:
            self.loss_scale_factor = factor

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable, by rows if the gradient has rows."""
        index = self._get_variable_index(variable)
        source = self._trainable_variables[index]
        rate = ops.cast(learning_rate, variable.dtype) * getattr(source, "mlet_lr_multiplier", 1.0)
        decay = self.weight_decay if self.weight_decay and self._use_weight_decay(source) else 0.0
        if _rows is not None and _rows.is_slices(gradient):
            self._update_rows(gradient, variable, index, rate, decay)
        else:
            self._update_all(ops.cast(gradient, variable.dtype), variable, index, rate, decay)

    def _update_rows(self, slices: Any, variable: Any, index: int, rate: Any, decay: float) -> None:
        if self._sums_duplicates or decay or self.l2:
            # Each replica's rows may be unique, but not those of all replicas together.
            one_replica = self._distribution_strategy.num_replicas_in_sync == 1
            promised = one_replica and getattr(self._trainable_variables[index], "mlet_unique_slices", False)
            slices = _rows.sum_duplicates(slices, promised)
        rows, values = slices.indices, ops.cast(slices.values, variable.dtype)
        if decay or self.l2:
            weights = _rows.gather(variable, rows)
            values = values + self.l2 * weights
            if decay:
                _rows.subtract(variable, rows, rate * decay * weights)
        self._row_step(rows, values, variable, index, rate)

    def _update_all(self, gradient: Any, variable: Any, index: int, rate: Any, decay: float) -> None:
        touched = None
        if self._needs_touched or decay or self.l2:
            touched = self._touched(gradient, index)
        if self.l2:
            gradient = _where(touched, gradient + self.l2 * variable, gradient)
        if decay:
            decayed = _where(touched, rate * decay * variable, ops.zeros_like(gradient))
            self.assign_sub(variable, decayed)
        self._dense_step(gradient, variable, index, rate, touched)

    def _touched(self, gradient: Any, index: int) -> Any:
        """Returns a mask [V, 1, ...] of the rows to update, or None for all."""
        if variable_role(self._trainable_variables[index]) != "table":
            return None
        return ops.any(ops.not_equal(gradient, 0), axis=tuple(range(1, len(gradient.shape))), keepdims=True)

    # Set by subclasses.
    _sums_duplicates = True
    _needs_touched = False

    def _row_step(self, rows: Any, values: Any, variable: Any, index: int, rate: Any) -> None:
        """Applies the update rule to the named rows, each of which occurs once if `_sums_duplicates`."""
        raise NotImplementedError

    def _dense_step(self, gradient: Any, variable: Any, index: int, rate: Any, touched: Any) -> None:
        """Applies the update rule to the rows in the mask `touched` (None: to all)."""
        raise NotImplementedError

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """Does nothing: Keras would shrink every row of a table; `update_step` shrinks the touched ones."""

    def _clip_gradients(self, grads: Sequence[Any]) -> Sequence[Any]:
        """Clips as Keras does, but sums repeated rows first and leaves gradients sparse."""
        if _rows is None:
            return super()._clip_gradients(grads)
        if self.clipnorm:
            return _rows.clip_by_norm(grads, self.clipnorm)
        if self.global_clipnorm:
            return _rows.clip_by_global_norm(grads, self.global_clipnorm)
        if self.clipvalue:
            return _rows.clip_by_value(grads, self.clipvalue)
        return grads

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "l2": self.l2}


def _where(touched: Any, chosen: Any, otherwise: Any) -> Any:
    return chosen if touched is None else ops.where(touched, chosen, otherwise)
