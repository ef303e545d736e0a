"""Counting values in runs on disk, adding the runs up in little memory, and ranking."""

import collections
import io
import tempfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlet_tf.datasets import ClickLogSchema, TimeColumn
from mlet_tf.datasets.encoding import dictionary_columns
from mlet_tf.features import counts
from mlet_tf.features.counts import ValueCounter, merge_counts, open_run
from mlet_tf.features.vocabulary import EMPTY, rank, write_vocabulary

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


def _run(path, values):
    counter = ValueCounter(SCHEMA)
    counter.add(_table([(value, None, True) for value in values]), np.ones(len(values), bool))
    return counter.take_run(str(path))


def _merge(runs, feature, max_values, folder):
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        yield from merge_counts(runs, feature, max_values, aside)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    blocks=BLOCKS,
    max_values=st.integers(1, 30),
    dictionaries=st.booleans(),
    limits=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(2, 4), st.integers(1, 99)),
)
def test_counts_depend_neither_on_blocks_nor_on_runs_nor_on_memory(
    tmp_path, blocks, max_values, dictionaries, limits
):
    counter, runs = ValueCounter(SCHEMA), []
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in zip(
            ("_BLOCK_VALUES", "_BLOCK_BYTES", "_MAX_FILES", "_MAX_BYTES"), limits, strict=True
        ):
            patch.setattr(counts, name, limit)
        for rows, ends_run in [*blocks, ([], True)]:
            table = dictionary_columns(_table(rows)) if dictionaries else _table(rows)
            counter.add(table, np.array([row[2] for row in rows], bool))
            if ends_run:
                run = counter.take_run(str(tmp_path / f"{len(runs)}.arrow"))
                runs.append(open_run(run.path))
                assert runs[-1] == run
        merged = [list(_merge(runs, feature, max_values, tmp_path)) for feature in (0, 1, 2)]
    kept = [row for rows, _ in blocks for row in rows if row[2]]
    assert sum(run.rows for run in runs) == len(kept)
    for feature in (0, 1):
        found = pa.concat_tables(merged[feature])
        expected = collections.Counter(row[feature] for row in kept if row[feature] is not None)
        assert len(found) == len(expected)
        assert dict(zip(*found.to_pydict().values(), strict=True)) == expected
    days = collections.Counter(str((i + 3) % 7) for rows, _ in blocks for i, row in enumerate(rows) if row[2])
    found = pa.concat_tables(merged[2]).to_pydict()
    assert dict(zip([value.decode() for value in found["value"]], found["count"], strict=True)) == days


def test_time_grows_with_the_runs_and_memory_does_not(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    runs = [_run(tmp_path / f"{i}", [b"%d" % v for v in rng.integers(0, 10**9, 3000)]) for i in range(80)]
    read = collections.Counter()

    class File(io.FileIO):
        def read(self, size=-1):
            read["bytes"] += size
            return super().read(size)

    def opened(path):
        read["files"] += 1
        return File(path)

    monkeypatch.setattr(counts, "open_binary", opened)

    def measure(number, max_values):
        read.clear()
        pool, before = pa.proxy_memory_pool(pa.system_memory_pool()), pa.default_memory_pool()
        pa.set_memory_pool(pool)
        try:
            sizes = [len(part) for part in _merge(runs[:number], 0, max_values, tmp_path)]
        finally:
            pa.set_memory_pool(before)
        assert max(sizes) <= max_values
        return read["files"], read["bytes"], pool.max_memory()

    few, many = measure(20, 20_000), measure(80, 20_000)
    assert many[0] < 1.3 * 4 * few[0]
    assert many[1] < 1.3 * 4 * few[1]
    assert many[2] < 1.1 * few[2]
    assert 4 * many[2] < measure(80, 10**9)[2]


def test_few_bytes_are_held_at_a_time_where_values_are_long(tmp_path, monkeypatch):
    values = [b"%04d" % i + bytes(1 << 19) for i in range(300)]
    counter = ValueCounter(SCHEMA)
    added = 0
    while not counter.full:
        rows = [(value, None, True) for value in values[added : added + 20]]
        counter.add(_table(rows), np.ones(20, bool))
        added += 20
    assert 200 < added <= 300
    monkeypatch.setattr(counts, "_MAX_BYTES", 32 << 20)
    runs = [_run(tmp_path / f"{i}", values[i::5]) for i in range(5)]
    parts = list(_merge(runs, 0, 10**9, tmp_path))
    assert sum(map(len, parts)) == 300
    assert max(part.nbytes for part in parts) <= 32 << 20


def _ranked(found, min_count=1, max_size=None, parts=1):
    items = sorted(found.items())
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


@settings(max_examples=100)
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
