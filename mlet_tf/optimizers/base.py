"""Common code of the sparse optimizers: rows to update, decay, clipping, learning rates of tables."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mlet_tf.layers.roles import variable_role
from mlet_tf.optimizers._table_rates import table_rates

if keras.backend.backend() == "tensorflow":
    from mlet_tf.optimizers import _rows
    from mlet_tf.optimizers._lazy_decay import LazyDecay
else:
    _rows = None  # type: ignore[assignment]

_LARGEST_SHRINKAGE = 1 - 1e-6  # More would turn the weights around.


class SparseOptimizer(keras.optimizers.Optimizer):
    """Base of the optimizers that update only touched rows.

    A row is touched if the gradient names it (`tf.IndexedSlices`) or, for a dense gradient of a table, if its
    gradient is not zero. L2 acts on the touched rows of a table, and on every element of the other variables. A
    table is a variable with `variable_role(variable) == "table"`.

    Weight decay is decoupled: with the update `u` of the rule (zero for untouched rows), all weights follow::

        row = (1 - learning_rate * weight_decay) * row - u

    On TensorFlow a step still costs only the touched rows. The product of the factors of all steps is kept as the sum
    of their logarithms, a number for each table, and its value at a row's last update, a number for each row. A row
    gets what it is owed when it is touched, and the layers of this package read it in training as if it had it
    already, so that gradients are those of the formula; `keras.layers.Embedding` reads it as it was. All rows get it
    in `finalize_variable_values(variables)`, which `fit` calls at its end: call it before you read, evaluate or save
    weights at any other time. A checkpoint that includes the optimizer's variables needs no such call. With dense
    gradients, with `use_ema` and with `gradient_accumulation_steps` all rows decay in each step.

    A variable's attribute `mlet_lr_multiplier` (default 1) scales its learning rate. `rows_exponent` scales that of
    each table: with `V` its rows and `V_max` those of the largest table among the variables, by
    `(V / V_max) ** rows_exponent`. Tables that share a variable have rates of their own. The decay of a table's rows
    has its rate, too. If a variable carries `mlet_unique_slices = True`, its layer promises slices without repeated
    rows and summing them is skipped.

    Under `jit_compile=True` the fused sparse ops, for which XLA has no kernels, are replaced by gathers and
    scatters with the same result. They are slower, so keep `jit_compile=False` for large tables. `use_ema`,
    `gradient_accumulation_steps` and constraints are Keras's own code and cost a pass over the whole table.

    Args:
        learning_rate: Float, schedule, or callable.
        l2: Coefficient of the L2 penalty `l2 / 2 * ||row||^2`; its gradient is added before the update rule.
        rows_exponent: Exponent of the table rates, at least 0.
        **kwargs: Arguments of `keras.optimizers.Optimizer`, such as `weight_decay`, `clipnorm` or `global_clipnorm`.

    References:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101.
    """

    loss_scale_factor: float | None  # Keras sets it.

    def __init__(
        self, learning_rate: Any, l2: float = 0.0, rows_exponent: float = 0.0, **kwargs: Any
    ) -> None:
        if l2 < 0:
            raise ValueError(f"`l2` should be >= 0. Received: l2={l2}")
        if not 0 <= rows_exponent < math.inf:
            raise ValueError(f"`rows_exponent` should be >= 0. Received: rows_exponent={rows_exponent}")
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.l2 = l2
        self.rows_exponent = float(rows_exponent)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Finds the rates of the tables, and creates the state of their decay."""
        if self.built:
            return
        super().build(variables)
        self._table_rates = table_rates(variables, self.rows_exponent)
        self._lazy_decays = [self._lazy_decay(index, variable) for index, variable in enumerate(variables)]

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

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Gives all rows of the tables the decay they are owed, at the cost of a pass over them."""
        for variable in var_list if self.built else ():
            lazy = self._lazy_decays[self._get_variable_index(variable)]
            if lazy is not None:
                strategy = self._distribution_strategy
                with strategy.scope():
                    strategy.extended.update(variable.value, lazy.settle, group=False)
        super().finalize_variable_values(var_list)

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
        lazy, rates = self._lazy_decays[index], self._table_rates[index]
        if self.l2:
            values = values + self.l2 * (
                _rows.gather(variable, rows) if lazy is None else lazy.read(variable, rows)
            )
        if lazy is not None:
            lazy.step(variable, rows, _shrinkage(rate * ops.convert_to_tensor(rates.factors), decay))
        elif decay:
            self.assign_sub(variable, _shrinkage(rates.of_all(rate, variable), decay) * variable)
        self._row_step(rows, values, variable, index, rates.of_rows(rate, rows, values))

    def _update_all(self, gradient: Any, variable: Any, index: int, rate: Any, decay: float) -> None:
        if self._lazy_decays[index] is not None:
            self._lazy_decays[index].settle(variable)
        rate = self._table_rates[index].of_all(rate, variable)
        touched = self._touched(gradient, index) if self._needs_touched or self.l2 else None
        if self.l2:
            gradient = _where(touched, gradient + self.l2 * variable, gradient)
        if decay:
            self.assign_sub(variable, _shrinkage(rate, decay) * variable)
        self._dense_step(gradient, variable, index, rate, touched)

    def _lazy_decay(self, index: int, variable: keras.Variable) -> Any:
        """Makes the state of a table's decay; None where all weights decay in each step, or never."""
        if variable_role(variable) != "table":
            return None
        variable.mlet_owed_decay = None  # That of an earlier optimizer.
        # These pass over the whole table anyway.
        passes = self.use_ema or self.gradient_accumulation_steps
        if _rows is None or passes or not self.weight_decay or not self._use_weight_decay(variable):
            return None
        lazy = LazyDecay(self, variable, self._table_rates[index].row_counts)
        variable.mlet_owed_decay = lazy.owed
        return lazy

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
        """Does nothing: Keras would pass over all rows of a table; `update_step` has the decay."""

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
        return {**super().get_config(), "l2": self.l2, "rows_exponent": self.rows_exponent}


def _where(touched: Any, chosen: Any, otherwise: Any) -> Any:
    return chosen if touched is None else ops.where(touched, chosen, otherwise)


def _shrinkage(rate: Any, decay: float) -> Any:
    """Share of the weights that a step takes away."""
    return ops.minimum(rate * decay, _LARGEST_SHRINKAGE)
