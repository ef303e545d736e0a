"""Log rows in memory: what a model is called with, and the labels."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from mlet_tf.errors import InputError
from mlet_tf.features.names import DENSE, SPARSE
from mlet_tf.types import Inputs

if TYPE_CHECKING:
    from mlet_tf.features.packed_rows import PackedRows


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledRows:
    """Rows of a click log.

    Attributes:
        inputs: What the model is called with: arrays `[N, ...]`, alone or in lists, tuples and dicts.
        label: 0 or 1, float32 `[N]`.
    """

    inputs: Inputs
    label: np.ndarray

    @classmethod
    def of(cls, data: Any, what: str) -> "LabelledRows":
        """Takes rows as `keras.Model.fit` does.

        Args:
            data: `(inputs, label)`, or a `tf.data.Dataset` of batches of them, which is read into memory.
            what: Name of the argument, for messages.

        Raises:
            InputError: These are no rows, or the labels are not 0 and 1.
        """
        pair = isinstance(data, tuple | list) and len(data) == 2
        if not pair and not hasattr(data, "as_numpy_iterator"):
            raise InputError(
                f"`{what}`: expected (inputs, label) or a tf.data.Dataset of them. Received: {type(data).__name__}"
            )
        inputs, label = data if pair else _read(data, what)
        inputs = keras.tree.map_structure(np.asarray, inputs)
        label = np.asarray(label).reshape(-1)
        shapes = {array.shape[:1] for array in keras.tree.flatten(inputs)}
        if shapes != {label.shape} or not len(label):
            rows = ", ".join(sorted(str(*shape) or "no" for shape in shapes)) or "no"
            raise InputError(
                f"`{what}`: expected rows, one label for each. "
                f"Received: inputs of {rows} rows and {len(label)} labels"
            )
        if not np.isin(label, (0, 1)).all():
            raise InputError(
                f"`{what}`: expected labels of 0 and 1. Received: {np.unique(label)[:5].tolist()}"
            )
        return cls(inputs, label.astype("float32"))

    @classmethod
    def packed(cls, rows: "PackedRows") -> "LabelledRows":
        """Takes preprocessed rows, which stay in their file."""
        return cls({DENSE: rows.dense_features, SPARSE: rows.sparse_features}, rows.label)

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.label)

    def take(self, rows: slice | np.ndarray) -> "LabelledRows":
        """Returns some of the rows."""
        return LabelledRows(keras.tree.map_structure(lambda a: a[rows], self.inputs), self.label[rows])

    def sample(self, count: int, seed: int) -> "LabelledRows":
        """Returns that many rows, drawn without replacement, or all where there are fewer."""
        if count >= len(self):
            return self
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False)))

    def divided(self, most: int, seed: int) -> tuple["LabelledRows", "LabelledRows"]:
        """Returns half of the rows, at most so many, and the others; which is drawn."""
        count = min(most, len(self) // 2)
        drawn = np.zeros(len(self), bool)
        drawn[np.random.default_rng(seed).choice(len(self), count, replace=False)] = True
        return self.take(np.flatnonzero(drawn)), self.take(np.flatnonzero(~drawn))

    def blocks(self, size: int) -> Iterator["LabelledRows"]:
        """Yields the rows in order, `size` at a time; the last block may be shorter."""
        for low in range(0, len(self), size):
            yield self.take(slice(low, low + size))


def _read(dataset: Any, what: str) -> tuple[Inputs, np.ndarray]:
    batches = list(dataset.as_numpy_iterator())
    if not batches or not all(isinstance(batch, tuple) and len(batch) == 2 for batch in batches):
        raise InputError(f"`{what}`: expected batches (inputs, label). Received: other elements, or none")
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *batches)
