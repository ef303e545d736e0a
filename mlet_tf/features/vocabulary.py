"""Vocabularies from counts: which values get an id, and in which order."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlet_tf.features.counts import Run, merge_counts
from mlet_tf.storage import join, remove

# Content of an empty vocabulary, as TensorFlow's tables refuse an empty file. No row can have it, because a row
# with a NUL byte is rejected when it is read.
EMPTY = b"\0empty vocabulary"

# A vocabulary is a text file with a value per line: as in tensorflow-transform, these have no id.
_NO_VALUE = r"^$|[\r\n]"
_WRITE_ROWS = 1 << 20
_PLAIN_NAME, _NOT_PLAIN = re.compile(r"[A-Za-z0-9_]{1,100}"), re.compile(r"[^A-Za-z0-9_]+")

# Arrow's `binary` is limited to 2 GB per column.
_RANKED = pa.schema([("value", pa.large_binary()), ("count", pa.int64())])


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Size and frequency boundary of a vocabulary.

    Args:
        size: Lines of its file.
        rare_start: First id of a value that counts as rare.
    """

    size: int
    rare_start: int


def vocabulary_file(feature: str) -> str:
    """File name of a feature's vocabulary, also among the assets of the transform graph.

    A name that is not a plain word becomes one, followed by a hash, so that no two features share a file.
    """
    if not _PLAIN_NAME.fullmatch(feature):
        readable = _NOT_PLAIN.sub("_", feature)[:40]
        feature = f"{readable}-{hashlib.sha256(feature.encode()).hexdigest()[:16]}"
    return f"vocabulary_{feature}.txt"


def make_vocabulary(
    numbered: tuple[int, str],
    runs: Sequence[Run],
    folder: str,
    *,
    min_count: int,
    max_size: int | None,
    rare_below: int,
    max_values_in_memory: int,
) -> dict[str, Any]:
    """Writes the vocabulary of one feature.

    Args:
        numbered: The feature's number in the order of `ClickLogSchema.sparse_features`, and its name.
        runs: Counts of the values of all features.
        folder: Where to write.
        min_count: Values that occur less often are left out.
        max_size: At most this many values are kept; None keeps all.
        rare_below: Values that occur less often count as rare.
        max_values_in_memory: See `merge_counts`.

    Returns:
        What `preprocessing_fn` needs: `file`, `size` and `rare_start`.
    """
    import tensorflow as tf

    number, feature = numbered
    aside = join(folder, uuid.uuid4().hex)
    tf.io.gfile.makedirs(aside)
    ranked = rank(merge_counts(runs, number, max_values_in_memory, aside), min_count, max_size)
    remove(aside)
    path = join(folder, vocabulary_file(feature))
    with tf.io.gfile.GFile(path, "wb") as file:
        vocabulary = write_vocabulary(ranked, rare_below, file)
    return {"file": path, **dataclasses.asdict(vocabulary)}


def rank(counts: Iterable[pa.Table], min_count: int, max_size: int | None) -> pa.Table:
    """Values by falling count, ties by falling value: the order of `tft.vocabulary`.

    Args:
        counts: Tables of `value` and `count`, each value in one of them.
        min_count: Values that occur less often are left out.
        max_size: At most this many values are kept; None keeps all.

    Returns:
        `value` (large_binary) and `count` (int64) of the values kept. Memory holds up to twice `max_size` values and
        one of `counts`.
    """
    kept: list[pa.Table] = []
    for table in counts:
        fits = pc.and_(
            pc.greater_equal(table["count"], min_count),
            pc.invert(pc.match_substring_regex(table["value"], _NO_VALUE)),
        )
        kept.append(table.filter(fits).cast(_RANKED))
        if max_size is not None and sum(map(len, kept)) > 2 * max_size:
            kept = [_sort(kept).slice(0, max_size).combine_chunks()]
    return _sort(kept).slice(0, max_size)


def write_vocabulary(ranked: pa.Table, rare_below: int, file: BinaryIO) -> Vocabulary:
    """Writes the values of `rank`, one per line.

    Args:
        ranked: `value` and `count` by falling count.
        rare_below: Values that occur less often count as rare.
        file: Where to write.
    """
    for batch in ranked.to_batches(max_chunksize=_WRITE_ROWS):
        end, separator = (pa.scalar(text, pa.large_binary()) for text in (b"", b"\n"))
        lines = pc.binary_join_element_wise(batch["value"], end, separator)
        offsets = np.frombuffer(lines.buffers()[1], np.int64)
        file.write(lines.buffers()[2].to_pybytes()[: int(offsets[len(lines)])])
    if not ranked.num_rows:
        file.write(EMPTY + b"\n")
    frequent = int(pc.sum(pc.greater_equal(ranked["count"], rare_below)).as_py() or 0)
    return Vocabulary(size=max(1, ranked.num_rows), rare_start=frequent)


def _sort(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).sort_by([("count", "descending"), ("value", "descending")])
