"""Decay of all rows of a table at the cost of the touched ones. Imported on the TensorFlow backend only."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from mlet_tf.layers.factorization import BLOCK_ROWS
from mlet_tf.optimizers import _rows
from mlet_tf.optimizers._table_rates import per_row


class LazyDecay:
    """The decay of the tables in one variable.

    After steps that took the shares `s_1 ... s_t` of all weights, a row that none of them touched is owed the factor
    `prod(1 - s_i)`. For each table the sum of `log(1 - s_i)` since the last pass over all rows is kept, in float64
    because it is a sum over very many small numbers; for each row the value that the sum had when the row was last
    brought up to date. The factor that it is owed is the exponential of the difference.

    Args:
        optimizer: The optimizer, which owns the state.
        table: The variable, `[rows, width]`.
        row_counts: Rows of each table in it whose decay differs.
    """

    def __init__(
        self, optimizer: keras.optimizers.Optimizer, table: keras.Variable, row_counts: Sequence[int]
    ) -> None:
        self._row_counts = tuple(row_counts)
        name = table.path.replace("/", "_")
        self._log_decay = optimizer.add_variable(
            (len(self._row_counts),), initializer="zeros", dtype="float64", name=f"{name}_log_decay"
        )
        self._paid = optimizer.add_variable(
            (table.shape[0],), initializer="zeros", dtype="float32", name=f"{name}_paid_log_decay"
        )

    def owed(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the factor that each of some rows is owed, float64 of the shape of `rows`."""
        total = _rows.gather(self._log_decay, _rows.tables_of(rows, self._row_counts))
        return tf.exp(total - tf.cast(_rows.gather(self._paid, rows), tf.float64))

    def read(self, table: keras.Variable, rows: tf.Tensor) -> tf.Tensor:
        """Returns rows as they would be if all rows had decayed in each step."""
        values = _rows.gather(table, rows)
        return values * per_row(tf.cast(self.owed(rows), values.dtype), values)

    def step(self, table: keras.Variable, rows: tf.Tensor, shares: tf.Tensor) -> None:
        """Decays all rows; those named get what they are owed.

        Args:
            table: The variable.
            rows: Numbers of rows, each once.
            shares: Share of the weights that this step takes away, in each table.
        """
        self._log_decay.value.assign_add(tf.math.log1p(-tf.cast(shares, tf.float64)))
        _rows.overwrite(table, rows, self.read(table, rows))
        total = _rows.gather(self._log_decay, _rows.tables_of(rows, self._row_counts))
        _rows.overwrite(self._paid, rows, tf.cast(total, tf.float32))

    def settle(self, table: keras.Variable) -> None:
        """Gives every row what it is owed, in blocks of rows."""
        count = table.shape[0]

        def settle_block(low: tf.Tensor) -> list[tf.Tensor]:
            rows = tf.range(low, tf.minimum(low + BLOCK_ROWS, count))
            _rows.overwrite(table, rows, self.read(table, rows))
            _rows.overwrite(self._paid, rows, tf.zeros_like(rows, tf.float32))
            return [low + BLOCK_ROWS]

        first = tf.constant(0, tf.int64)
        tf.while_loop(lambda low: low < count, settle_block, [first], parallel_iterations=1)
        self._log_decay.value.assign(tf.zeros([len(self._row_counts)], tf.float64))
