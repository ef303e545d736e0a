"""Learning rates of tables that grow with their rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from mlet_tf.layers.roles import stacked_tables, variable_role

if keras.backend.backend() == "tensorflow":
    from mlet_tf.optimizers import _rows


@dataclasses.dataclass(frozen=True)
class TableRates:
    """Factors on the learning rates of the tables that one variable holds.

    Attributes:
        row_counts: Rows of each table, top to bottom; all rows as one where the factors are equal.
        factors: A factor for each.
    """

    row_counts: tuple[int, ...]
    factors: tuple[float, ...]

    def of_rows(self, rate: Any, rows: Any, values: Any) -> Any:
        """Returns the rates of some rows, a scalar or as a column for `values` (TensorFlow).

        Their cost depends on the number of rows named and of tables, not on the size of these.
        """
        if len(self.factors) == 1:
            return rate * self.factors[0]
        factors = ops.take(
            ops.convert_to_tensor(self.factors, values.dtype), _rows.tables_of(rows, self.row_counts)
        )
        return rate * per_row(factors, values)

    def of_all(self, rate: Any, variable: Any) -> Any:
        """Returns the rates of all rows, a scalar or a column."""
        if len(self.factors) == 1:
            return rate * self.factors[0]
        columns = [
            ops.full((rows,), factor, dtype=variable.dtype)
            for rows, factor in zip(self.row_counts, self.factors, strict=True)
        ]
        return rate * per_row(ops.concatenate(columns), variable)


def table_rates(variables: Sequence[keras.Variable], exponent: float) -> list[TableRates]:
    """Returns the factors `(V / V_max) ** exponent` of all tables, for each variable; 1 for other weights.

    Args:
        variables: All variables of an optimizer; `V_max` is that of the largest table in them.
        exponent: The exponent.
    """
    tables = [stacked_tables(v) if variable_role(v) == "table" else None for v in variables]
    largest = max((v for table in tables if table for v in table.vocabularies), default=1)
    rates = []
    for variable, table in zip(variables, tables, strict=True):
        factors = [(v / largest) ** exponent for v in table.vocabularies] if table else [1.0]
        if table and len(set(factors)) > 1:
            rates.append(TableRates(table.row_counts, tuple(factors)))
        else:
            rates.append(TableRates(tuple(variable.shape[:1]), (factors[0],)))
    return rates


def per_row(factors: Any, values: Any) -> Any:
    """Shapes one factor a row so that it multiplies `values`."""
    for _ in range(len(values.shape) - 1):
        factors = ops.expand_dims(factors, -1)
    return factors
