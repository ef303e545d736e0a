"""Regularisers and constraints of variables that hold several matrices."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from mlet_tf.types import Tensor

# These need no copies of the parts.
_ELEMENTWISE = (
    keras.regularizers.L1,
    keras.regularizers.L2,
    keras.regularizers.L1L2,
    keras.constraints.NonNeg,
)


@dataclasses.dataclass(frozen=True)
class Parts:
    """How a variable holds several matrices.

    Attributes:
        row_counts: Rows of each matrix where they are below each other, None where they are a stack.
    """

    row_counts: Sequence[int] | None = None

    def split(self, variable: keras.Variable) -> list[Tensor]:
        """Returns the matrices."""
        tensor = ops.convert_to_tensor(variable)
        if self.row_counts is None:
            return ops.unstack(tensor)
        if len(self.row_counts) == 1:
            return [tensor]
        return ops.split(tensor, np.cumsum(self.row_counts)[:-1].tolist())

    def join(self, matrices: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return ops.stack(matrices) if self.row_counts is None else ops.concatenate(matrices)

    def regularizer(self, regularizer: Callable | None) -> Callable | None:
        """Makes the regulariser of a matrix one of the variable: its sum."""
        if regularizer is None or type(regularizer) in _ELEMENTWISE:
            return regularizer
        return lambda variable: sum(regularizer(matrix) for matrix in self.split(variable))

    def constraint(self, constraint: Callable | None) -> Callable | None:
        """Makes the constraint of a matrix one of the variable."""
        if constraint is None or type(constraint) in _ELEMENTWISE:
            return constraint
        return lambda variable: self.join([constraint(matrix) for matrix in self.split(variable)])
