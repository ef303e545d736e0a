"""All vocabularies of a click log in one columnar Beam analyzer."""

import os
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
import tensorflow_transform.beam as tft_beam

# What an empty vocabulary holds instead of nothing: TensorFlow's tables refuse an empty file. No row can
# have it, because a row with a NUL byte is rejected when it is read.
EMPTY = b"\0empty vocabulary"

# Asset with a line a feature: the first rank of its vocabulary that counts as rare.
RARE_RANKS = "rare_ranks.txt"

# Rows an accumulator gathers before it counts them: counting many at once is what makes it fast.
_PENDING_ROWS = 1 << 18

# An accumulator: the counted values and counts of each column, and batches still to be counted.
_Accumulator = tuple[list[pa.Table | None], list[list[pa.Array]], int]


def vocabulary_file(feature: str) -> str:
    """File name of a feature's vocabulary among the assets of the transform graph."""
    return f"vocabulary_{feature}.txt"


class CountValues(beam.CombineFn):
    """Counts the values of several string columns together.

    Args:
        columns: Number of columns.
    """

    def __init__(self, columns: int) -> None:
        """See the class."""
        self._columns = columns

    def create_accumulator(self) -> _Accumulator:
        """An empty accumulator."""
        return [None] * self._columns, [[] for _ in range(self._columns)], 0

    def add_input(self, accumulator: _Accumulator, batch: tuple[np.ndarray, ...]) -> _Accumulator:
        """Adds a batch: one array of byte strings a column."""
        counted, pending, rows = accumulator
        for arrays, column in zip(pending, batch, strict=True):
            arrays.append(pa.array(column.reshape(-1), type=pa.binary()))
        rows += len(batch[0])
        return self.compact((counted, pending, rows)) if rows >= _PENDING_ROWS else (counted, pending, rows)

    def merge_accumulators(self, accumulators: Iterable[_Accumulator]) -> _Accumulator:
        """One accumulator with the counts of all."""
        tables: list[list[pa.Table]] = [[] for _ in range(self._columns)]
        for accumulator in accumulators:
            for column, table in zip(tables, self.compact(accumulator)[0], strict=True):
                if table is not None:
                    column.append(table)
        return [_sum_counts(column) for column in tables], [[] for _ in range(self._columns)], 0

    def compact(self, accumulator: _Accumulator) -> _Accumulator:
        """Counts what is pending; also Beam's hook before an accumulator travels."""
        counted, pending, rows = accumulator
        if not rows:
            return accumulator
        merged = [
            _sum_counts([*([table] if table is not None else []), _count(arrays)])
            for table, arrays in zip(counted, pending, strict=True)
        ]
        return merged, [[] for _ in range(self._columns)], 0

    def extract_output(self, accumulator: _Accumulator) -> list[pa.Table | None]:
        """A table of `value` and `count` for each column; None where no row came."""
        return self.compact(accumulator)[0]


class CountVocabularies(tft_beam.experimental.PTransformAnalyzer):
    """Analyzer that writes one vocabulary file a feature.

    Its values and their order are those of `tft.vocabulary`: falling count, ties by falling value.

    Args:
        features: Names of the features, in the order of the analyzer's inputs.
        min_count: Values that occur less often are left out.
        max_size: At most this many values a feature are kept; None keeps all.
        rare_below: Values that occur less often count as rare.
    """

    def __init__(
        self, features: tuple[str, ...], min_count: int, max_size: int | None, rare_below: int
    ) -> None:
        """See the class."""
        super().__init__()
        self._features = features
        self._min_count = min_count
        self._max_size = max_size
        self._rare_below = rare_below

    def expand(self, pcoll: beam.PCollection) -> tuple[beam.PCollection, ...]:
        """Counts the batches; the outputs are the paths of the vocabularies and of `RARE_RANKS`."""
        folder = self.base_temp_dir
        tags = [f"file_{index}" for index in range(len(self._features) + 1)]

        def save(name: str, content: bytes) -> np.ndarray:
            path = os.path.join(folder, name)  # noqa: PTH118 (may be remote)
            with tf.io.gfile.GFile(path, "wb") as file:
                file.write(content)
            return np.array(path, dtype=object)

        def write(tables: list[pa.Table | None]) -> Iterator[beam.pvalue.TaggedOutput]:
            tf.io.gfile.makedirs(folder)
            rare_ranks = b""
            for tag, feature, table in zip(tags[:-1], self._features, tables, strict=True):
                values, counts = rank(table, self._min_count, self._max_size)
                rare_ranks += b"%d\n" % (counts >= self._rare_below).sum()
                content = b"".join(value + b"\n" for value in values or [EMPTY])
                yield beam.pvalue.TaggedOutput(tag, save(vocabulary_file(feature), content))
            yield beam.pvalue.TaggedOutput(tags[-1], save(RARE_RANKS, rare_ranks))

        outputs = (
            pcoll
            | "Count" >> beam.CombineGlobally(CountValues(len(self._features)))
            | "Write" >> beam.FlatMap(write).with_outputs(*tags)
        )
        return tuple(outputs[tag] for tag in tags)


def rank(table: pa.Table | None, min_count: int, max_size: int | None) -> tuple[list[bytes], np.ndarray]:
    """Values by falling count, ties by falling value, and their counts.

    Args:
        table: `value` and `count`, in any order; None for no rows.
        min_count: See `CountVocabularies`.
        max_size: See `CountVocabularies`.

    Returns:
        The values kept and their counts, int64.
    """
    if table is None:
        return [], np.zeros(0, np.int64)
    keep = pc.and_(pc.greater_equal(table["count"], min_count), pc.not_equal(table["value"], pa.scalar(b"")))
    table = table.filter(keep).sort_by([("count", "descending"), ("value", "descending")])
    table = table.slice(0, max_size)
    return table["value"].to_pylist(), table["count"].to_numpy()


def _count(arrays: list[pa.Array]) -> pa.Table:
    counts = pa.chunked_array(arrays).value_counts()
    return pa.table({"value": counts.field("values"), "count": counts.field("counts")})


def _sum_counts(tables: list[pa.Table]) -> pa.Table | None:
    if len(tables) < 2:
        return tables[0] if tables else None
    summed = pa.concat_tables(tables).group_by("value").aggregate([("count", "sum")])
    return pa.table({"value": summed["value"], "count": summed["count_sum"]})
