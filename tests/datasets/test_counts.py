"""Counting values in runs on disk, adding the runs up in little memory, and ranking."""

import collections
import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlet_tf.datasets import ClickLogSchema, TimeColumn
from mlet_tf.datasets.counts import ValueCounter, merge_counts, open_run
from mlet_tf.datasets.encoding import dictionary_columns
from mlet_tf.datasets.vocabulary import EMPTY, rank, write_vocabulary

SCHEMA = ClickLogSchema(
    name="little",
    label="y",
    integers=(),
    categoricals=("a", "b"),
    time=TimeColumn("t", "unix_seconds", ("weekday",)),
    drop=(),
    columns=("y", "a", "b", "t"),
    separator=",",
    header=False,
    missing=("",),
)
VALUES = st.sampled_from([None, b"", b"a", b"b", b"cc", b"\xc3\xa9", b"a\tb", b'"']) | st.binary(max_size=2)
# Blocks of rows, each with whether it ends a run.
BLOCKS = st.lists(st.tuples(st.lists(st.tuples(VALUES, VALUES, st.booleans()), max_size=20), st.booleans()))


def _table(rows):
    return pa.table(
        {
            "a": pa.array([row[0] for row in rows], pa.binary()),
            "b": pa.array([row[1] for row in rows], pa.binary()),
            "t": pa.array([86_400 * i for i in range(len(rows))], pa.int64()),
        }
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(blocks=BLOCKS, max_values=st.integers(1, 30), dictionaries=st.booleans())
def test_counts_depend_neither_on_blocks_nor_on_runs_nor_on_memory(
    tmp_path, blocks, max_values, dictionaries
):
    counter, runs = ValueCounter(SCHEMA), []
    for rows, ends_run in [*blocks, ([], True)]:
        table = dictionary_columns(_table(rows)) if dictionaries else _table(rows)
        counter.add(table, np.array([row[2] for row in rows], bool))
        if ends_run:
            path = tmp_path / f"{len(runs)}.arrow"
            path.write_bytes(counter.take_run())
            runs.append(open_run(str(path)))
    kept = [row for rows, _ in blocks for row in rows if row[2]]
    assert sum(run.rows for run in runs) == len(kept)
    for feature in (0, 1):
        parts = list(merge_counts(runs, feature, max_values))
        merged = pa.concat_tables(parts)
        expected = collections.Counter(row[feature] for row in kept if row[feature] is not None)
        assert sum(len(part) for part in parts) == len(expected)
        assert dict(zip(*merged.to_pydict().values(), strict=True)) == expected
    days = collections.Counter(str((i + 3) % 7) for rows, _ in blocks for i, row in enumerate(rows) if row[2])
    merged = pa.concat_tables(merge_counts(runs, 2, max_values)).to_pydict()
    assert dict(zip([value.decode() for value in merged["value"]], merged["count"], strict=True)) == days


def test_few_values_are_held_at_a_time(tmp_path):
    rng = np.random.default_rng(0)
    runs, values = [], 0
    for i in range(20):
        counter = ValueCounter(SCHEMA)
        found = rng.integers(0, 10**6, 5000)
        counter.add(_table([(b"%d" % value, None, True) for value in found]), np.ones(len(found), bool))
        (tmp_path / f"{i}").write_bytes(counter.take_run())
        runs.append(open_run(str(tmp_path / f"{i}")))
        values += runs[-1].distinct[0]
    parts = list(merge_counts(runs, 0, values // 10))
    assert len(parts) >= 8
    assert max(len(part) for part in parts) < values / 10 * 1.3


def _ranked(counts, min_count=1, max_size=None, parts=1):
    items = sorted(counts.items())
    tables = [
        pa.table(
            {
                "value": pa.array([value for value, _ in items[i::parts]], pa.binary()),
                "count": pa.array([count for _, count in items[i::parts]], pa.int64()),
            }
        )
        for i in range(parts)
    ]
    return rank(tables, min_count, max_size)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.binary(min_size=1, max_size=3), st.integers(1, 4)),
    st.integers(1, 3),
    st.none() | st.integers(1, 5),
    st.integers(1, 4),
)
def test_values_are_ranked_by_falling_count_then_falling_value(counts, min_count, max_size, parts):
    ranked = _ranked(counts, min_count, max_size, parts)
    kept = [v for v, n in counts.items() if n >= min_count and not set(v) & {10, 13}]
    expected = sorted(kept, key=lambda value: (counts[value], value), reverse=True)[:max_size]
    assert ranked["value"].to_pylist() == expected
    assert ranked["count"].to_pylist() == [counts[value] for value in expected]


@pytest.mark.parametrize(
    ("counts", "content", "size", "rare_start"),
    [
        ({b"a": 9, b"\tb": 3, b'"': 9}, b'a\n"\n\tb\n', 3, 2),
        ({b"": 5, b"a\nb": 5, b"c\rd": 5}, EMPTY + b"\n", 1, 0),
        ({}, EMPTY + b"\n", 1, 0),
    ],
)
def test_the_file_has_a_line_a_value_and_never_none(counts, content, size, rare_start):
    file = io.BytesIO()
    vocabulary = write_vocabulary(_ranked(counts), 5, file)
    assert file.getvalue() == content
    assert (vocabulary.size, vocabulary.rare_start) == (size, rare_start)
