"""Splits of a sweep's log: by place, by time, by a column that names them."""

import collections
import hashlib
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlet_tf.config import from_mapping
from mlet_tf.config.sweep import SweepConfig, SweepSplitConfig
from mlet_tf.datasets import ClickLogSchema, load_schema, read_log
from mlet_tf.errors import InputError
from mlet_tf.experiments.preparation import digest_of, prepare
from mlet_tf.experiments.splits import SPLITS, schema_to_read, split_log

TRAIN, VALIDATION, TEST = range(3)
COLUMNS = {
    "name": "shop",
    "label": "y",
    "integers": ["i"],
    "time": {"name": "t", "format": "unix_seconds", "derive": []},
    "categoricals": ["c"],
    "drop": ["part", "day"],
    "columns": ["y", "part", "i", "t", "c", "day"],
    "separator": ",",
    "header": True,
}
SCHEMA = ClickLogSchema.from_dict(COLUMNS)
BY_PART = {"method": "column", "column": "part", "parts": {"train": ["a", "b"], "test": ["z"]}}
WITH_LISTS = BY_PART | {"parts": {"train": ["a"], "validation": ["b"], "test": ["z"]}}
BY_DAY = {
    "method": "column",
    "column": "day",
    "parts": {"train": [1, 2, 3], "validation": ["4"], "test": [5]},
}
BY_TIME = {"method": "time", "validation_share": 0.2, "test_share": 0.1}
ROWS = 2000


def part_of(number):
    return "aabz"[number % 4]


def day_of(number):
    return number % 5 + 1


def time_of(number):
    """Not in the order of the rows; twenty rows share a time."""
    return 1_000_000 + number * 7 % ROWS // 20


def log_of(folder, lines=None):
    """Rows told apart by `i`; each category names its part, so that each split has values of its own."""
    if lines is None:
        lines = [
            f"{n % 2},{part_of(n)},{n},{time_of(n)},c{part_of(n)}{n % 3},{day_of(n)}" for n in range(ROWS)
        ]
    (folder / "shop.yaml").write_text(json.dumps(COLUMNS))
    (folder / "log.csv").write_text("\n".join([",".join(COLUMNS["columns"]), *lines]) + "\n")
    return folder / "log.csv"


def sweep_of(folder, split, log="log.csv"):
    data = {"train": str(folder / log), "schema": str(folder / "shop.yaml")}
    document = {"name": "s", "output": "s", "data": data, "vocabulary": {"min_count": 1}}
    return from_mapping(SweepConfig, document | {"sweep": {"grid": [{}], "split": split}})


def numbers_of(data):
    """The numbers `i` of the rows of each split, from their dense feature log(1 + i)."""
    return {
        name: np.round(np.expm1(rows.dense_features[:, 0].astype(np.float64))).astype(int).tolist()
        for name, rows in data.splits.items()
    }


def table_of(**columns):
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def halves(table):
    return [table.slice(0, len(table) // 2), table.slice(len(table) // 2)]


@pytest.mark.parametrize("log", ["log.csv", "log.parquet"])
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (WITH_LISTS, lambda n: {"a": "train", "b": "validation", "z": "test"}[part_of(n)]),
        (BY_DAY, lambda n: {4: "validation", 5: "test"}.get(day_of(n), "train")),
        (
            BY_TIME,
            lambda n: "train" if n * 7 % ROWS < 1400 else "validation" if n * 7 % ROWS < 1800 else "test",
        ),
    ],
    ids=["text", "integers", "time"],
)
def test_rows_go_where_their_column_says(tmp_path, log, split, expected):
    log_of(tmp_path)
    if log == "log.parquet":  # `day` is stored as integers, `part` as text.
        numbers = list(range(ROWS))
        columns = {
            "y": [n % 2 for n in numbers],
            "part": list(map(part_of, numbers)),
            "i": numbers,
            "t": list(map(time_of, numbers)),
            "c": [f"c{part_of(n)}{n % 3}" for n in numbers],
            "day": list(map(day_of, numbers)),
        }
        pq.write_table(table_of(**columns), tmp_path / log)
    data = prepare(sweep_of(tmp_path, split, log), tmp_path / "rows")
    found = numbers_of(data)
    assert sorted(itertools.chain(*found.values())) == list(range(ROWS)), "every row is in one split, once"
    for name, rows in found.items():
        assert {expected(n) for n in rows} == {name}
    assert list(data.table_rows) == ["c"], "the column that splits is no feature"


def test_validation_without_a_list_is_drawn_from_train(tmp_path):
    log_of(tmp_path)
    split = BY_PART | {"validation_share": 0.2}
    found = numbers_of(prepare(sweep_of(tmp_path, split), tmp_path / "rows"))
    assert sorted(itertools.chain(*found.values())) == list(range(ROWS))
    assert {part_of(n) for n in found["test"]} == {"z"}
    assert len(found["test"]) == 500 and len(found["validation"]) == 300
    for name in ("train", "validation"):
        assert {part_of(n) for n in found[name]} == {"a", "b"}
    spread = np.histogram(found["validation"], 4, (0, ROWS))[0]
    assert spread.min() > 40, "drawn from the whole log"
    other = numbers_of(prepare(sweep_of(tmp_path, split | {"seed": 1}), tmp_path / "rows"))
    assert other["test"] == found["test"] and other["validation"] != found["validation"]


def test_vocabularies_and_counts_are_those_of_train(tmp_path):
    log_of(tmp_path)
    data = prepare(sweep_of(tmp_path, WITH_LISTS), tmp_path / "rows")
    size = data.table_rows["c"]
    assert size == 3 + 2, "the values of `a` rows, out of vocabulary, missing"
    assert data.counts()[0].tolist() == [334, 333, 333, 0, 0]
    for name in ("validation", "test"):
        assert set(data.splits[name].sparse_features[:, 0]) == {size - 2}, "all of its values are unknown"


@given(
    times=st.lists(st.integers(0, 30), min_size=3, max_size=200),
    shares=st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.4)),
)
@settings(deadline=None)
def test_time_divides_in_order_and_never_within_a_time(times, shares):
    config = SweepSplitConfig(method="time", validation_share=shares[0], test_share=shares[1])
    tables = halves(table_of(t=times))
    try:
        split = split_log(tables, SCHEMA, config)
    except InputError as error:
        assert "different times" in str(error) or "should give each split rows" in str(error)
        assume(False)
    times = np.array(times)
    assert split.dtype == np.uint8 and split.shape == times.shape
    ends = [(times[split == number].min(), times[split == number].max()) for number in range(3)]
    assert ends[TRAIN][1] < ends[VALIDATION][0] and ends[VALIDATION][1] < ends[TEST][0]
    for share, got in ((shares[1], split == TEST), (sum(shares), split > TRAIN)):
        # No other time to cut at comes nearer to the share.
        nearest = min(abs((times >= time).mean() - share) for time in np.unique(times)[1:])
        assert abs(got.mean() - share) == pytest.approx(nearest)


@given(
    names=st.lists(st.sampled_from("abcdz"), min_size=1, max_size=200),
    listed=st.booleans(),
    seed=st.integers(0, 3),
)
@settings(deadline=None)
def test_a_column_puts_every_row_into_the_split_that_lists_it(names, listed, seed):
    parts = {"train": ["a", "b"], "test": ["z"]} | ({"validation": ["c"]} if listed else {})
    config = SweepSplitConfig(method="column", column="part", parts=parts, validation_share=0.3, seed=seed)
    count = collections.Counter(names)
    unknown = [name for name in ("c", "d") if count[name] and not (listed and name == "c")]
    try:
        split = split_log(halves(table_of(part=names)), SCHEMA, config)
    except InputError as error:
        if unknown:
            assert all(f"'{name}' in {count[name]} rows" in str(error) for name in unknown)
        else:
            assert "should give each split rows" in str(error)
        return
    assert not unknown
    names = np.array(names)
    np.testing.assert_array_equal(split == TEST, names == "z")
    if listed:
        np.testing.assert_array_equal(split == VALIDATION, names == "c")
    else:
        assert (split == VALIDATION).sum() == round(0.3 * (names != "z").sum())


def test_whole_numbers_are_the_same_however_they_are_written(tmp_path):
    log_of(tmp_path, [f"{n % 2},a,{n},{n},c,{day_of(n)}{'.0' * (n % 2)}" for n in range(50)])
    split = BY_DAY | {"parts": {"train": ["1", "2.0", 3], "validation": [4], "test": ["5"]}}
    found = numbers_of(prepare(sweep_of(tmp_path, split), tmp_path / "rows"))
    assert found["test"] == list(range(4, 50, 5)) and found["validation"] == list(range(3, 50, 5))
    assert digest_of(sweep_of(tmp_path, split)) == digest_of(sweep_of(tmp_path, BY_DAY))


def test_rows_that_are_left_out_move_no_other_row(tmp_path):
    lines = [f"{n % 2},{part_of(n)},{n},{time_of(n)},c,1" for n in range(ROWS)]
    lines[8] = "1,z,eight,1000000,c,1"
    log_of(tmp_path, lines)
    found = numbers_of(prepare(sweep_of(tmp_path, WITH_LISTS), tmp_path / "rows"))
    assert sorted(itertools.chain(*found.values())) == [n for n in range(ROWS) if n != 8]
    assert {part_of(n) for n in found["test"]} == {"z"}


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            WITH_LISTS | {"column": "prt"},
            "'sweep.split.column' should be a column of schema 'shop' other than its label. Received: 'prt'. "
            "Did you mean 'part'? Columns: part, i, t, c, day",
        ),
        (WITH_LISTS | {"column": "y"}, "other than its label. Received: 'y'"),
        (
            WITH_LISTS | {"parts": {"train": ["a"], "test": ["z"]}},
            "'sweep.split.parts' should list all values of column 'part'. Received: 'b' in 500 rows",
        ),
        (
            BY_DAY | {"parts": {"train": [1], "test": [2]}},
            "all values of column 'day'. Received: '3' in 400 rows, '4' in 400 rows, '5' in 400 rows",
        ),
        (
            BY_DAY | {"column": "i"},
            # Counted one by one up to a limit; the rows of 1 to 5 are listed.
            "Received: further values in 995 rows, '0' in 1 rows, '10' in 1 rows, '100' in 1 rows, '1000' in 1 rows, "
            "others in 996 rows",
        ),
        (
            WITH_LISTS | {"parts": {"train": ["a", "b"], "validation": ["v"], "test": ["z"]}},
            "'sweep.split' (method 'column') should give each split rows. Received: train 1,500, validation 0, test ",
        ),
    ],
)
def test_mistakes_name_the_key_the_value_and_the_rows(tmp_path, split, message):
    log_of(tmp_path)
    with pytest.raises(InputError) as error:
        prepare(sweep_of(tmp_path, split), tmp_path / "rows")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "rows").glob("*")), "nothing half-written"


def test_a_row_without_the_name_of_its_part_is_a_mistake(tmp_path):
    log_of(tmp_path, ["1,a,1,1,c,1", "0,,2,2,c,1", "1,b,3,3,c,1", "1,z,4,4,c,1"])
    with pytest.raises(InputError, match=r"column 'part'\. Received: no value in 1 rows"):
        prepare(sweep_of(tmp_path, WITH_LISTS), tmp_path / "rows")


def test_a_split_by_time_needs_a_time_column_and_several_times():
    with pytest.raises(InputError) as error:
        schema_to_read(load_schema("criteo"), SweepSplitConfig(method="time"))
    assert str(error.value) == "'sweep.split.method' is 'time', but schema 'criteo' has no time column"
    with pytest.raises(InputError, match=r"different times\. Received: 5 in all rows"):
        split_log([table_of(t=[5, 5, 5])], SCHEMA, SweepSplitConfig(method="time"))
    with pytest.raises(InputError, match="Received: train 98, validation 0, test 2"):
        split_log([table_of(t=[1] * 98 + [2, 3][:1] * 2)], SCHEMA, SweepSplitConfig(method="time"))


HASHES = """
import hashlib, pathlib, sys
sys.path.insert(0, sys.argv[1])
import test_splits
print(test_splits.hashes(pathlib.Path(sys.argv[2])))
"""


def hashes(folder):
    """Hashes of the splits of one log by every method."""
    found = []
    for split in ({}, {"method": "sequential"}, BY_TIME, BY_PART, WITH_LISTS):
        config = SweepSplitConfig(**split)
        tables = read_log(str(folder / "log.csv"), schema_to_read(SCHEMA, config))
        found.append(hashlib.sha256(split_log(tables, SCHEMA, config).tobytes()).hexdigest())
    return found


def test_a_second_process_splits_alike(tmp_path):
    log_of(tmp_path)
    command = [sys.executable, "-c", HASHES, os.path.dirname(__file__), str(tmp_path)]  # noqa: PTH120
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert result.stdout.strip().splitlines()[-1:] == [str(hashes(tmp_path))], result.stderr
    assert len(set(hashes(tmp_path))) == 5


def test_the_parts_of_a_real_log_are_found(samples):
    """douban_book: the parts of a paper, in a column that the schema drops."""
    if not (samples / "douban_book.csv.gz").exists():
        pytest.skip("douban_book is not among the samples")
    schema = load_schema(str(samples / "schemas" / "douban_book.yaml"))
    cold = ["user_cold_testing", "item_cold_testing", "user_and_item_cold_testing"]
    parts = {"train": ["meta_training", "warm_up"], "test": cold}
    config = SweepSplitConfig(method="column", column="part", parts=parts)
    tables = read_log(str(samples / "douban_book.csv.gz"), schema_to_read(schema, config))
    rows = np.bincount(split_log(tables, schema, config), minlength=len(SPLITS))
    assert rows.tolist() == [378_450, 42_050, 228_881]
