"""Values that mean the same are the same category or integer, wherever they come from and whoever reads them."""

import dataclasses
import datetime
import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.convert import convert_column
from mlet_tf.datasets.encoding import encode_examples
from mlet_tf.datasets.reading import plan_chunks, read_chunk
from mlet_tf.errors import InputError
from mlet_tf.serving.rows import Rows

LOG = ClickLogSchema.from_dict(
    {
        "name": "log",
        "label": "y",
        "integers": ["i"],
        "categoricals": ["c"],
        "separator": ",",
        "missing": ["-1", "NA"],
    }
)
WHOLE = st.integers(-(2**53) + 1, 2**53 - 1) | st.sampled_from([0, 1, -1, 5, 260])


def trained_on(path):
    """The examples that the pipeline makes of a file, without the label."""
    (chunk,) = plan_chunks([str(path)], LOG, 1 << 40)
    (block,) = read_chunk(chunk, LOG)
    assert not block.rejects
    return _plain(encode_examples(block.table.select(["i", "c"])).to_pylist())


def predicted(rows, schema=LOG):
    return _plain(Rows(rows, schema).examples)


def _plain(examples):
    """A message of nothing is written in two ways."""
    return [b"" if example == b"\n\x00" else example for example in examples]


def as_text(values):
    return "".join(f"1,{text},{text}\n" for text in values)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.none() | WHOLE, min_size=1, max_size=8))
def test_a_whole_number_is_one_value_in_text_parquet_arrow_pandas_and_dicts(tmp_path, numbers):
    plain = ["" if number is None else str(number) for number in numbers]
    (tmp_path / "log.csv").write_text(as_text(plain))
    expected = trained_on(tmp_path / "log.csv")
    floats = [None if number is None else float(number) for number in numbers]

    dotted = ["" if number is None else f"{number}.0" for number in numbers]
    (tmp_path / "log.csv").write_text(as_text(dotted))
    assert trained_on(tmp_path / "log.csv") == expected
    arrays = {
        "int64": pa.array(numbers, pa.int64()),
        "float64": pa.array(floats, pa.float64()),
        "nan": pa.array([float("nan") if number is None else number for number in floats]),
        "string": pa.array([text or None for text in dotted], pa.string()),
        "binary": pa.array([text.encode() for text in plain], pa.large_binary()),
        "dictionary": pa.array(plain).dictionary_encode(),
    }
    for array in arrays.values():
        table = pa.table({"y": [1] * len(numbers), "i": array, "c": array})
        pq.write_table(table, tmp_path / "log.parquet")
        assert trained_on(tmp_path / "log.parquet") == expected
        assert predicted(table) == expected

    frames = {
        "float": pd.Series(floats, dtype=np.float64),
        "Int64": pd.Series(numbers, dtype="Int64"),
        "Float64": pd.Series(floats, dtype="Float64"),
        "object": pd.Series(numbers, dtype=object),
        "mixed": pd.Series(
            [text if n % 2 else number for n, (text, number) in enumerate(zip(plain, floats, strict=True))],
            dtype=object,
        ),
        "string": pd.Series([text or pd.NA for text in dotted], dtype="string"),
        "category": pd.Series(floats).astype("category"),
        "bytearray": pd.Series([bytearray(text.encode()) for text in plain], dtype=object),
        "NaT": pd.Series([pd.NaT if number is None else number for number in numbers], dtype=object),
        "Decimal": pd.Series(
            [decimal.Decimal("NaN") if number is None else decimal.Decimal(number) for number in numbers],
            dtype=object,
        ),
    }
    for series in frames.values():
        assert predicted(pd.DataFrame({"i": series, "c": series})) == expected

    forms = [
        numbers,
        floats,
        plain,
        [text.encode() for text in dotted],
        [bytearray(text.encode()) for text in dotted],
        [memoryview(text.encode()) for text in plain],
        [None if number is None else np.int64(number) for number in numbers],
        [np.float64("nan") if number is None else np.float64(number) for number in numbers],
        [pd.NA if number is None else decimal.Decimal(f"{number}.00") for number in numbers],
        [pd.NaT if number is None else np.str_(number) for number in numbers],
        [np.datetime64("NaT") if number is None else number for number in numbers],
    ]
    for values in forms:
        rows = [{"i": value, "c": value} for value in values]
        assert predicted(rows) == expected
        # Many rows go a column at a time.
        assert predicted(rows + [{}] * 200)[: len(rows)] == expected
    lines = [f"{text},{text}" for text in dotted]
    assert predicted(lines) == expected
    assert predicted([bytearray(line.encode()) for line in lines]) == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters='",'), max_size=6),
        min_size=1,
    )
)
def test_a_text_is_one_category_in_every_form(tmp_path, texts):
    (tmp_path / "log.csv").write_text("".join(f"1,7,{text}\n" for text in texts))
    expected = trained_on(tmp_path / "log.csv")
    table = pa.table({"y": [1] * len(texts), "i": [7] * len(texts), "c": texts})
    pq.write_table(table, tmp_path / "log.parquet")
    assert trained_on(tmp_path / "log.parquet") == expected
    for rows in (table, table.to_pandas(), table.to_pylist(), [f"7,{text}" for text in texts]):
        assert predicted(rows) == expected


def test_small_floats_big_integers_and_negative_zero():
    def category(value):
        return predicted([{"c": value}])[0]

    five = category("5")
    for value in (
        5.0,
        np.float16(5),
        np.float32(5),
        np.uint8(5),
        np.str_("5"),
        np.bytes_(b"5.00"),
        decimal.Decimal(5),
    ):
        assert category(value) == five
    assert predicted(pa.table({"c": pa.array(np.array([5], np.float16))})) == [five]
    assert category(-0.0) == category("-0.0") == category("0") == category(0)
    assert category(2**70) == category(str(2**70))
    assert predicted(pa.table({"c": pa.array([2**64 - 1], pa.uint64())})) == [category(2**64 - 1)]
    # What has another meaning stays another category.
    assert len({category(text) for text in ("5", "05", "5.0.0", "v5.0", "5.01", "5.")}) == 6


@pytest.mark.parametrize(
    "value", [5.5, np.float32(0.1), 2.0**53, float("inf"), decimal.Decimal("5.5"), True, np.bool_(False)]
)
def test_a_number_that_may_be_written_in_many_ways_is_no_category(tmp_path, value):
    for rows in ([{"c": value}], [{"c": value}] * 200, pd.DataFrame({"c": [value]})):
        with pytest.raises(InputError, match="row 0: column 'c' should be UTF-8 text"):
            predicted(rows)
    table = pa.table({"y": [1], "i": [1], "c": [value]})
    if not isinstance(value, decimal.Decimal):
        pq.write_table(table, tmp_path / "log.parquet")
        with pytest.raises((AssertionError, InputError)):
            trained_on(tmp_path / "log.parquet")


def test_whole_floats_are_integers_everywhere(tmp_path):
    (tmp_path / "log.csv").write_text("1,260.0,a\n1.0,260,a\n1,2.5,a\n1,1e3,a\n")
    (chunk,) = plan_chunks([str(tmp_path / "log.csv")], LOG)
    (block,) = read_chunk(chunk, LOG)
    assert block.table["i"].to_pylist() == [260, 260]
    assert [reject.line for reject in block.rejects] == [3, 4]
    expected = predicted([{"i": 260}])
    for value in ("260.0", "260.00", 260.0, b"260.0", np.float32(260), decimal.Decimal("260.0")):
        assert predicted([{"i": value}]) == expected
    for value in ("2.5", "1e3", 2.5, "260.0x"):
        with pytest.raises(InputError, match="column 'i' should be an integer"):
            predicted([{"i": value}])
    marked = dataclasses.replace(LOG, missing=("007",))
    assert predicted([{"c": 7}], marked) == predicted(pa.table({"c": [7]}), marked) == predicted([{"c": "7"}])
    assert predicted([{"i": True}]) == predicted([{"i": np.bool_(True)}]) == predicted([{"i": 1}])


def test_a_number_before_a_line_end_is_a_text_in_every_form(tmp_path):
    """Such a text occurs in Parquet; `re` lets `$` stand before a line end, RE2 does not."""
    table = pa.table({"y": [1], "i": [7], "c": ["5.0\n"]})
    pq.write_table(table, tmp_path / "log.parquet")
    expected = trained_on(tmp_path / "log.parquet")
    for rows in (table, table.to_pandas(), table.to_pylist(), table.to_pylist() * 101):
        assert predicted(rows)[0] == expected[0]


def test_decimals_of_parquet_are_whole_numbers_or_malformed(tmp_path):
    """Such as Spark and Hive write: the whole file was refused, and the client took them."""
    numbers = [decimal.Decimal(text) for text in ("5", "-7.00", "0", "12345678901234567890.00")]
    decimals = pa.array([*numbers, None, decimal.Decimal("2.50")], pa.decimal128(30, 2))
    table = pa.table({"y": pa.array([1] * 6, pa.int64()), "i": pa.array([7] * 6), "c": decimals})
    pq.write_table(table, tmp_path / "log.parquet")
    (chunk,) = plan_chunks([str(tmp_path / "log.parquet")], LOG)
    (block,) = read_chunk(chunk, LOG)
    assert block.table["c"].to_pylist() == [b"5", b"-7", b"0", b"12345678901234567890", None]
    assert [reject.line for reject in block.rejects] == [6] and "Decimal('2.50')" in block.rejects[0].reason
    good = table.slice(0, 5)
    expected = predicted(
        [{"i": 7, "c": None if value is None else int(value)} for value in good["c"].to_pylist()]
    )
    assert predicted(good) == predicted(good.to_pylist()) == predicted(good.to_pandas()) == expected
    one = pa.array([decimal.Decimal("1.0")])
    pq.write_table(pa.table({"y": one, "i": decimals[1:2], "c": ["a"]}), tmp_path / "log.parquet")
    (chunk,) = plan_chunks([str(tmp_path / "log.parquet")], LOG)
    (block,) = read_chunk(chunk, LOG)
    assert block.table["i"].to_pylist() == [-7]


def test_a_header_is_no_row(tmp_path):
    """Its columns may be in another order, in which the rows after it would be misread."""
    schema = dataclasses.replace(LOG, header=True)
    for first in ("c,y,i", "y,i,c\n", '"i","c"', "\ufeffy,i,c"):
        with pytest.raises(InputError, match=r"row 0: expected a row\. Received: the header of a file"):
            predicted([first, "1,7,a"], schema)
    # A category may be named as its column is.
    single = dataclasses.replace(schema, integers=(), columns=("y", "c"))
    assert predicted(["1,c"], single) == predicted(["c"], single) == predicted([{"c": "c"}], single)
    assert predicted(["\ufeff1,7,a", "1,7,a"]) == predicted([{"i": 7, "c": "a"}] * 2)


def test_the_empty_text_is_missing_even_where_the_schema_has_other_marks(tmp_path):
    (tmp_path / "log.csv").write_text("1,,\n1,-1,NA\n1,-1.0,-1\n")
    assert trained_on(tmp_path / "log.csv") == [b""] * 3
    for value in ("", "-1", "-1.0", -1, -1.0, "NA", b"NA", None):
        assert predicted([{"i": value, "c": value}]) == [b""]


def test_lines_may_be_quoted_as_the_schema_says():
    quoted = predicted([{"i": 3, "c": 'a,"b'}, {"c": "x"}])
    assert predicted(['3,"a,""b"', ',"x"\r\n']) == quoted
    # No line shows a closed quote: it is a character.
    assert predicted(["3,a", '3,"a']) == predicted([{"i": 3, "c": "a"}, {"i": 3, "c": '"a'}])
    with pytest.raises(InputError, match="row 1: a quoted field does not end"):
        predicted(['3,"a"', '3,"a'])
    with pytest.raises(InputError, match="row 1: expected UTF-8 text"):
        predicted(["3,a", "3,\ud800"])


TIMED = ClickLogSchema.from_dict(
    {"name": "t", "label": "y", "categoricals": ["c"], "time": {"name": "at", "format": "iso8601"}}
)


def test_one_moment_is_one_number_in_every_form():
    expected = predicted([{"at": "2014-10-21T01:30:00Z"}], TIMED)
    moment = datetime.datetime(2014, 10, 21, 1, 30)
    zone = datetime.timezone(datetime.timedelta(hours=2))
    forms = [
        "2014-10-21 03:30:00+02:00",
        b"2014-10-21T01:30",
        1413855000,
        moment,
        moment.replace(hour=3, tzinfo=zone),
        pd.Timestamp(moment),
        pd.Timestamp("2014-10-21 03:30", tz="Europe/Berlin"),
        np.datetime64("2014-10-21T01:30"),
    ]
    for value in forms:
        for rows in ([{"at": value}], pd.DataFrame({"at": [value]}), [{"at": value}] * 200):
            assert predicted(rows, TIMED)[:1] == expected
    assert predicted([{"at": pd.NaT}, {"at": None}], TIMED) == [b"", b""]
    for value in ("2014-13-01", "20141021", "1413855000", "yesterday", 5.5, -1):
        with pytest.raises(InputError, match=r"row 0: column 'at' should be a time \(iso8601\) or missing"):
            Rows([{"at": value}], TIMED)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.binary(max_size=3) | st.sampled_from([b"a", "\u00e9".encode(), b"\xe9"])))
def test_bytes_that_are_not_utf8_are_found_among_others(cells):
    column = pa.array([b"before", *cells], pa.binary())[1:]
    _, bad = convert_column(column, "c", LOG)

    def is_category(cell):
        return cell.decode("utf-8", "replace").encode() == cell and b"\0" not in cell

    assert bad.tolist() == [cell is not None and not is_category(cell) for cell in cells]
