"""What a variable is to an optimizer: a table, a projection or a part of the dense network."""

import math
import numbers
from typing import Literal

import keras

Role = Literal["table", "projection", "dense"]

_TABLE_NAMES = ("table", "direct_table", "embeddings")


def variable_role(variable: keras.Variable) -> Role:
    """Returns the group of variables that a weight belongs to.

    The role is read from the last part of the variable's path: factors of `V` rows and direct tables are
    named `table...` or `direct_table...` by this package (and `embeddings` by Keras), the small factors
    `projection...`. All others are `"dense"`.

    Args:
        variable: A Keras variable or a `tf.Variable`.

    Returns:
        `"table"`, `"projection"` or `"dense"`.
    """
    path = getattr(variable, "path", None) or variable.name
    name = path.rsplit("/", 1)[-1].split(":")[0]
    if name.startswith("projection"):
        return "projection"
    if name.startswith(_TABLE_NAMES):
        return "table"
    return "dense"


def validate_multiplier(which: str, value: object) -> float:
    """Returns the value, or raises ValueError if it cannot be a factor on a learning rate.

    Args:
        which: `"table"` or `"projection"`.
        value: Value of `{which}_learning_rate_multiplier`.
    """
    if not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
        raise ValueError(
            f"`{which}_learning_rate_multiplier` should be a finite number of at least 0. Received: {value!r}"
        )
    return float(value)


def mark(variable: keras.Variable, learning_rate_multiplier: float) -> None:
    """Marks a variable for the optimizers of this package.

    Args:
        variable: A Keras variable.
        learning_rate_multiplier: Factor on the learning rate of this variable.
    """
    variable.mlet_lr_multiplier = learning_rate_multiplier
