"""The lookup of a collection: one gather per variable for all ids of a batch."""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from mlet_tf.layers._plan import Chain, Plan, TableGroup
from mlet_tf.layers.backend import (
    SliceTracker,
    gather_rows,
    gather_trained_rows,
    in_compiled_code,
    on_tensorflow,
    spread,
)
from mlet_tf.layers.ids import guard_ids
from mlet_tf.types import Tensor

_SMALL_BATCH = 256


@dataclasses.dataclass(frozen=True, eq=False)
class FusedLookup:
    """Looks ids up in the variables of a plan.

    Attributes:
        plan: The layout.
        tables: A variable for each group of the plan, or a layer that widens its rows.
        projections: The stacks of projections, chain by chain.
        slices: A note on the row gradients of each table.
        compute_dtype: Dtype of the embeddings.
        oov: What happens to an out-of-range id, see `guard_ids`.
        deduplicate: Whether ids are de-duplicated first; None decides by the batch size.
        training: Whether the model is being trained.
    """

    plan: Plan
    tables: Sequence[keras.Variable | keras.layers.Layer]
    projections: Sequence[keras.Variable]
    slices: Sequence[SliceTracker]
    compute_dtype: str
    oov: str
    deduplicate: bool | None
    training: bool = False

    def embed(self, ids: Tensor) -> Tensor:
        """Returns `[B, F, d]` for ids `[B, F]` of one value a feature."""
        ids, invalid = self.guard(ids, range(len(self.plan.features)))
        # Feature by feature, so that the distinct rows of each are one slice.
        ids = ops.cast(ops.transpose(ids), "int32")
        if self.plan.order is not None:
            ids = ops.take(ids, self.plan.order, axis=0)
        if self._deduplicates(ids):
            result = self._unique_matrix(ids)
        else:
            result = ops.transpose(self._plain_matrix(ids), (1, 0, 2))
            if self.plan.inverse is not None:
                result = ops.take(result, self.plan.inverse, axis=1)
        if invalid is None:
            return result
        return ops.where(invalid[..., None], ops.cast(float("nan"), result.dtype), result)

    def guard(self, ids: Tensor, slots: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Keeps ids of some features inside their tables, see `guard_ids`."""
        features = [self.plan.features[slot] for slot in slots]
        return guard_ids(ids, [f.input_dim for f in features], [f.name for f in features], self.oov)

    def gather(self, number: int, rows: Tensor, unique: bool) -> Tensor:
        """Reads rows of a variable, in compute precision.

        Args:
            number: Number of the variable.
            rows: Its rows, int32.
            unique: Whether no row occurs twice.
        """
        table = self.tables[number]
        if on_tensorflow() and isinstance(table, keras.Variable):
            self.slices[number].note(table, unique and not self.plan.groups[number].shares_rows)
        read = gather_trained_rows if self.training else gather_rows
        return ops.cast(read(table, rows), self.compute_dtype)

    def stack(self, chain: Chain, which: Sequence[int]) -> Tensor:
        """Returns the `[len(which), k, d]` projections, chains multiplied out, in compute precision."""
        stacks = self.projections[self.plan.stack_slice(chain)]
        product, *others = [ops.cast(stack, self.compute_dtype) for stack in stacks]
        for other in others:
            product = ops.matmul(product, other)
        if list(which) == list(range(product.shape[0])):
            return product
        return ops.take(product, np.asarray(which, "int32"), axis=0)

    def project_distinct(self, number: int, unique: Tensor, ends: Tensor) -> Tensor:
        """Gathers distinct rows and multiplies each block's slice with its projection (TensorFlow).

        Args:
            number: Number of the variable.
            unique: Distinct ids, each block's in its own range, sorted by block.
            ends: Where the ids of each block end.

        Returns:
            `[len(unique), d]`.
        """
        import tensorflow as tf

        group = self.plan.groups[number]
        counts = ends - tf.concat([[0], ends[:-1]], 0)
        rows = unique
        if group.shares_rows:
            shifts = np.asarray([block.offset for block in group.blocks]) - group.starts
            rows = unique + tf.repeat(tf.constant(shifts.astype("int32")), counts)
        rows = self.gather(number, rows, unique=True)
        if not group.chain:
            return rows
        projections = tf.unstack(self.stack(group.chain, group.projections))
        slices = tf.split(rows, counts, num=len(projections))
        return tf.concat([tf.matmul(x, w) for x, w in zip(slices, projections, strict=True)], 0)

    def _deduplicates(self, ids: Tensor) -> bool:
        if not on_tensorflow() or in_compiled_code(ids):
            return False
        if self.deduplicate is not None:
            return self.deduplicate
        return ids.shape[-1] is None or ids.shape[-1] > _SMALL_BATCH

    def _plain_matrix(self, ids: Tensor) -> Tensor:
        """Embeds `[F, B]` ids, in the order of the plan, without de-duplication."""
        results, low = [], 0
        for number, group in enumerate(self.plan.groups):
            count = len(group.slots)
            offsets = group.per_slot([block.offset for block in group.blocks]).astype("int32")
            rows = self.gather(number, ids[low : low + count] + offsets[:, None], unique=False)
            if group.chain:
                which = group.per_slot(group.projections)
                rows = ops.matmul(rows, self.stack(group.chain, which.tolist()))
            results.append(rows)
            low += count
        return results[0] if len(results) == 1 else ops.concatenate(results, axis=0)

    def _unique_matrix(self, ids: Tensor) -> Tensor:
        """Embeds `[F, B]` ids, in the order of the plan, after de-duplication (TensorFlow)."""
        import tensorflow as tf

        results, positions, low, seen = [], [], 0, 0
        batch = tf.shape(ids)[1]
        for number, group in enumerate(self.plan.groups):
            count = len(group.slots)
            # The ids of each block move to their own range.
            starts = group.per_slot(group.starts).astype("int32")
            unique, where = tf.unique(tf.reshape(ids[low : low + count] + starts[:, None], [-1]))
            where = tf.reshape(where, [count, batch])
            results.append(self.project_distinct(number, unique, _block_ends(group, where)))
            positions.append(where + seen)
            low, seen = low + count, seen + tf.size(unique)
        rows = results[0] if len(results) == 1 else tf.concat(results, 0)
        where = positions[0] if len(positions) == 1 else tf.concat(positions, 0)
        if self.plan.inverse is not None:
            where = tf.gather(where, self.plan.inverse)
        return spread(rows, tf.transpose(where))


def _block_ends(group: TableGroup, positions: Tensor) -> Tensor:
    """Where the distinct rows of each block end.

    `tf.unique` numbers rows in the order in which it meets them, so the largest number in a block is
    one less than the count of distinct rows up to there.
    """
    import tensorflow as tf

    largest = tf.reduce_max(positions, axis=1)
    block_of_slot = group.per_slot(np.arange(len(group.blocks)))
    if len(group.blocks) < len(block_of_slot):
        largest = tf.math.segment_max(largest, block_of_slot)
    return tf.maximum(largest, -1) + 1  # The maximum over an empty batch is the smallest integer.
