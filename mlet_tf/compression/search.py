"""Which size to take: tries plans from large to small."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from mlet_tf import strict_json
from mlet_tf.compression.reads import ModelTable
from mlet_tf.compression.report import PointReport, Scores
from mlet_tf.compression.rows import LabelledRows
from mlet_tf.embeddings.allocator import SHARING, STORES, WIDTHS, Allocation, Allocator
from mlet_tf.embeddings.energy import TableEnergy
from mlet_tf.embeddings.fitting import TrainedTable
from mlet_tf.embeddings.model_tables import served_layer
from mlet_tf.embeddings.plan import Band, Budget, FeaturePlan, Plan
from mlet_tf.errors import InputError
from mlet_tf.metrics import auc, auc_difference, logloss
from mlet_tf.replace import replace_layers
from mlet_tf.types import Inputs
from mlet_tf.units import bytes_text

_RATIOS = (1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_BEYOND = 2  # Sizes below the choice that are tried too, to show what they would cost.
_BISECTIONS = 2  # Between the smallest size that keeps to a budget of AUC and the next one.
_BLOCK_ROWS = 32_768


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A model to compress.

    Attributes:
        model: The model.
        tables: Its tables.
        trained: Their rows, counts and bases.
        energies: What their columns are worth.
        methods: What may be saved, out of `COMPRESSION_METHODS`.
        seed: Of the hashes.
    """

    model: keras.Model
    tables: Sequence[ModelTable]
    trained: Sequence[TrainedTable]
    energies: Sequence[TableEnergy]
    methods: Sequence[str]
    seed: int

    @property
    def float32_bytes(self) -> int:
        """Bytes of the tables in float32."""
        return sum(table.float32_bytes for table in self.tables)

    def allocator(self) -> Allocator:
        """Returns the allocator of the methods."""
        return Allocator(
            self.energies,
            STORES if "bits" in self.methods else STORES[:1],
            SHARING if "rows" in self.methods else (),
            WIDTHS if "columns" in self.methods else WIDTHS[:1] if "rows" in self.methods else (),
            self.seed,
        )

    def whole(self) -> Allocation:
        """Returns the tables as they are, in float32."""
        shapes = [(t.name, t.factorization.rows, t.factorization.output_dim) for t in self.tables]
        features = tuple(FeaturePlan(name, rows, (Band(rows, width),)) for name, rows, width in shapes)
        return Allocation(features, tuple(width for *_, width in shapes), 0.0)

    def served(self, allocation: Allocation) -> keras.Model:
        """Returns the model with its tables in the form of a plan."""
        parts = list(zip(self.tables, allocation.features, self.trained, strict=True))

        def narrower(layer: keras.layers.Layer) -> keras.layers.Layer | None:
            own = [part for part in parts if part[0].layer is layer]
            if not own:
                return None
            # Energies have the names of messages.
            features = tuple(dataclasses.replace(feature, name=table.name) for table, feature, _ in own)
            plan = Plan(own[0][0].factorization.output_dim, features)
            return served_layer(layer, plan, {table.name: rows for table, _, rows in own})

        return replace_layers(self.model, narrower)


@dataclasses.dataclass(frozen=True, eq=False)
class _Size:
    """A size that was tried; without an allocation the model as it is."""

    allocation: Allocation | None
    bytes: int
    scores: Scores

    @property
    def drop(self) -> float:
        """The drop of AUC and its standard error: what is lost is hardly more."""
        drop, error = self.scores["auc_drop"], self.scores["auc_drop_error"]
        return math.nan if drop is None or error is None else drop + error


class Search:
    """Tries sizes of a problem.

    Args:
        problem: The model.
        budget: What it may cost.
        rows: Rows that the choice is made on, see `require_rows`; None for a budget of bytes alone.
        note: Called with a line about each size.
        memory: File in which the scores of sizes are kept, so that an interrupted search goes on.

    Raises:
        InputError: The budget cannot be met.
    """

    def __init__(
        self,
        problem: Problem,
        budget: Budget,
        rows: LabelledRows | None,
        note: Callable[[str], None],
        memory: Path | None,
    ) -> None:
        self._problem, self._budget, self._rows, self._note = problem, budget, rows, note
        self._allocator = problem.allocator()
        self._memory = memory
        self._known: dict[str, Scores] = (
            strict_json.read(memory) if memory is not None and memory.is_file() else {}
        )
        self._full = problem.float32_bytes
        self._reference: np.ndarray | None = None
        self._limit = None if budget.max_auc_drop is not None else budget.limit(self._full)
        if self._limit is not None and self._limit < self._allocator.smallest_bytes:
            raise InputError(
                f"Budget: expected at least {self._allocator.smallest_bytes} bytes of tables, the smallest there is by "
                f"{', '.join(problem.methods)} ({self._full / self._allocator.smallest_bytes:.4g} times fewer than "
                f"{self._full}). Received: {self._limit} bytes"
            )

    def run(self) -> tuple[Allocation, list[PointReport]]:
        """Returns the allocation to take and a report of all sizes, from large to small."""
        first = self._try(None)
        chosen, tried = self._to_drop(first) if self._limit is None else self._to_limit(first, self._limit)
        sizes = sorted([first, *tried], key=lambda size: -size.bytes)
        points = [self._point(size, size is chosen) for size in sizes]
        return chosen.allocation or self._problem.whole(), points

    def _to_limit(self, first: _Size, most: int) -> tuple[_Size, list[_Size]]:
        """The largest plan within a number of bytes; larger and smaller ones to compare with."""
        if most >= self._full:
            return first, []
        larger, smaller = [], []
        if self._rows is not None:
            limits = list(self._limits())
            larger = [self._try(limit) for limit in limits if limit > most]
            smaller = [limit for limit in limits if limit < most][:_BEYOND]
        chosen = self._try(most)
        return chosen, [*larger, chosen, *(self._try(limit) for limit in smaller)]

    def _to_drop(self, first: _Size) -> tuple[_Size, list[_Size]]:
        """The smallest plan before the first one that loses too much AUC."""
        chosen, tried, limits = first, [], self._limits()
        for limit in limits:
            tried.append(self._try(limit))
            if not self._keeps(tried[-1]):
                break
            chosen = tried[-1]
        if tried and tried[-1] is not chosen:
            high, low = chosen.bytes, tried[-1].bytes
            for _ in range(_BISECTIONS):
                tried.append(self._try(int(math.sqrt(high * low))))
                if self._keeps(tried[-1]):
                    chosen, high = tried[-1], tried[-1].bytes
                else:
                    low = tried[-1].bytes
        tried += [self._try(limit) for limit, _ in zip(limits, range(_BEYOND), strict=False)]
        return chosen, tried

    def _keeps(self, size: _Size) -> bool:
        if self._budget.max_auc_drop is not None:
            return size.drop <= self._budget.max_auc_drop
        return self._limit is None or size.bytes <= self._limit

    def _limits(self) -> Iterator[int]:
        """Bytes to try, falling, down to the smallest plan or the largest ratio, whichever comes first."""
        smallest = self._allocator.smallest_bytes
        for ratio in _RATIOS:
            if int(self._full / ratio) <= smallest:
                yield smallest
                return
            yield int(self._full / ratio)

    def _try(self, limit: int | None) -> _Size:
        allocation = None if limit is None else self._allocator.allocate(limit)
        size = self._full if allocation is None else allocation.bytes.embedding
        key = str(limit)
        if key not in self._known:
            self._known[key] = self._score(allocation)
            if self._memory is not None:
                strict_json.write(self._memory, self._known)
        found = _Size(allocation, size, self._known[key])
        if self._rows is not None and allocation is not None:
            scores = found.scores
            self._note(
                f"{self._full / size:.4g} times smaller, {bytes_text(size)}: AUC {scores['auc']:.5f}, "
                f"a drop of {scores['auc_drop']:.5f} ± {scores['auc_drop_error']:.5f}"
            )
        return found

    def _score(self, allocation: Allocation | None) -> Scores:
        if self._rows is None:
            return {"auc": None, "auc_drop": None, "auc_drop_error": None, "logloss": None}
        if self._reference is None:
            self._reference = predict(self._problem.model, self._rows.inputs)
        label, before = self._rows.label, self._reference
        after = before if allocation is None else predict(self._problem.served(allocation), self._rows.inputs)
        drop, error = auc_difference(label, before, after)
        return {
            "auc": auc(label, after),
            "auc_drop": drop,
            "auc_drop_error": error,
            "logloss": logloss(label, after),
        }

    def _point(self, size: _Size, chosen: bool) -> PointReport:
        return {
            "ratio": self._full / size.bytes,
            "bytes": size.bytes,
            **size.scores,
            "predicted_loss": 0.0 if size.allocation is None else size.allocation.loss,
            "within_budget": self._keeps(size),
            "chosen": chosen,
        }


def require_rows(budget: Budget, rows: LabelledRows | None) -> None:
    """Raises InputError where an AUC cannot be measured: there are no rows for a budget of it, or too few."""
    if rows is None:
        if budget.max_auc_drop is not None:
            raise InputError("Budget: expected rows to measure AUC on, for `max_auc_drop`. Received: none")
        return
    clicks = int((rows.label > 0.5).sum())
    if min(clicks, len(rows) - clicks) < 2:
        raise InputError(
            "Choosing rows: expected two with a click and two without, at least. "
            f"Received: {clicks} with a click, {len(rows) - clicks} without"
        )


def predict(model: keras.Model, inputs: Inputs) -> np.ndarray:
    """Returns a model's click probabilities in inference mode, float32 `[N]`."""
    rows = len(keras.tree.flatten(inputs)[0])
    parts = []
    # Eagerly, as each of many models is asked once: tracing takes longer than a few large blocks.
    for low in range(0, rows, _BLOCK_ROWS):
        block = keras.tree.map_structure(
            lambda values, low=low: tf.constant(values[low : low + _BLOCK_ROWS]), inputs
        )
        parts.append(tf.cast(tf.reshape(model(block, training=False), [-1]), tf.float32).numpy())
    return np.concatenate(parts)
