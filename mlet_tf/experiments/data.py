"""The rows of a sweep, packed, which every trial maps into memory."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from mlet_tf.features.packed_rows import PackedRows


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """The rows of a sweep and what trials need to know about them.

    Attributes:
        digest: Hash of the configuration that made them.
        splits: The rows of each split, by name.
        table_rows: Rows V of each feature's table, by name.
        oov_buckets: Ids of each feature for values out of vocabulary; before the last id, which is missing values.
        rare_below: Ids seen less often than this in `train` are rare.
        best: AUC, logloss and normalised entropy of the true probabilities over the test rows; None for a
            real log.
    """

    digest: str
    splits: dict[str, PackedRows]
    table_rows: dict[str, int]
    oov_buckets: int
    rare_below: int
    best: dict[str, float] | None

    def counts(self) -> tuple[np.ndarray, ...]:
        """How often each id of each feature occurs in `train`, int64 `[V]` each."""
        return _id_counts(self.splits["train"], tuple(self.table_rows.values()))

    def rare_rows(self, split: str) -> np.ndarray:
        """Returns a mask of the rows with an id that occurs fewer than `rare_below` times in `train`, bool `[N]`."""
        sizes = tuple(self.table_rows.values())
        return _rare_rows(self.splits[split], self.splits["train"], sizes, self.rare_below)


# Trials of one process ask for these again and again.
_id_counts = functools.lru_cache(maxsize=4)(PackedRows.id_counts)


@functools.lru_cache(maxsize=8)
def _rare_rows(rows: PackedRows, train: PackedRows, sizes: tuple[int, ...], rare_below: int) -> np.ndarray:
    rare = np.zeros(rows.rows, bool)
    for i, counts in enumerate(_id_counts(train, sizes)):
        rare |= counts[rows.sparse_features[:, i]] < rare_below
    return rare
