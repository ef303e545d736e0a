"""The top of a ranking model: an MLP to the logit, and a linear path beside it."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="mlet_tf")
class SkipTop(keras.layers.Layer):
    """An MLP to a click probability, beside a linear path from the interactions to the logit.

    For inputs `x = [bottom, z]` with `P` interactions `z` it computes `sigmoid(mlp(x) + z @ w)`, where `w` starts as
    `1 / P`, so that the logit starts as the mean of the dot products.

    Without the linear path a model whose inputs are ids alone may learn nothing: at the start its MLP sees a constant
    and dot products near zero, so that the gradients are noise, and the ReLU units die before the embeddings have
    grown. With it embeddings learn from the first step, as in a factorisation machine.

    Args:
        units: Widths of the MLP before the logit; ReLU follows each.
        bottom_units: Width of `bottom`, which the linear path leaves out.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `[B, bottom_units + P]`.

    Output shape:
        Probabilities `[B, 1]`, float32.

    References:
        Cheng et al., "Wide & Deep Learning for Recommender Systems", arXiv 1606.07792, for the sum of a linear and a
        deep logit; Rendle, "Factorization Machines", ICDM 2010, for dot products in the logit.
    """

    def __init__(self, units: Sequence[int], bottom_units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = list(units)
        self.bottom_units = int(bottom_units)
        self._hidden = [keras.layers.Dense(n, "relu", dtype=self.dtype_policy) for n in self.units]
        self._logit = keras.layers.Dense(1, dtype="float32")

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Creates the weights."""
        width = input_shape[-1] or 0
        interactions = width - self.bottom_units
        if interactions < 1:
            raise ValueError(
                f"The input of {self.name!r} should be wider than `bottom_units`={self.bottom_units}. "
                f"Received: {width}"
            )
        for layer, inputs in zip([*self._hidden, self._logit], [width, *self.units], strict=True):
            layer.build((None, inputs))
        self._skip = self.add_weight(
            name="skip",
            shape=(interactions, 1),
            initializer=keras.initializers.Constant(1 / interactions),
            dtype="float32",
            autocast=False,
        )
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Returns probabilities."""
        hidden = inputs
        for layer in self._hidden:
            hidden = layer(hidden)
        interactions = ops.cast(inputs[:, self.bottom_units :], "float32")
        return ops.sigmoid(self._logit(hidden) + ops.matmul(interactions, self._skip))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, int]:
        """Returns `(batch, 1)`."""
        return (input_shape[0], 1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "units": self.units, "bottom_units": self.bottom_units}
