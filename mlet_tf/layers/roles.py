"""What a variable is to an optimizer: a table, a projection or a part of the dense network."""

import dataclasses
import math
import numbers
from collections.abc import Sequence
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


@dataclasses.dataclass(frozen=True)
class StackedTables:
    """The tables that one variable holds.

    Attributes:
        row_counts: Rows of each in the variable, top to bottom.
        vocabularies: `V` of each; more than its rows where a variable holds only a share of them.
    """

    row_counts: tuple[int, ...]
    vocabularies: tuple[int, ...]


def mark_tables(
    variable: keras.Variable, row_counts: Sequence[int], vocabularies: Sequence[int] | None = None
) -> None:
    """Tells the optimizers of this package which tables a variable holds.

    Args:
        variable: A Keras variable.
        row_counts: See `StackedTables`.
        vocabularies: See `StackedTables`; by default the rows.
    """
    variable.mlet_tables = StackedTables(
        tuple(row_counts), tuple(row_counts if vocabularies is None else vocabularies)
    )


def stacked_tables(variable: keras.Variable) -> StackedTables:
    """Returns the tables of a variable with the role of one; a single one unless it is marked."""
    rows = (int(variable.shape[0]),)
    return getattr(variable, "mlet_tables", StackedTables(rows, rows))
