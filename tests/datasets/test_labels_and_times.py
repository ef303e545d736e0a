"""Labels in text and ISO 8601 times: read as the schema says, in text and Parquet, and in the served graph."""

import dataclasses
import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.datasets import ClickLogSchema, TimeColumn, read_log, write_log
from mlet_tf.datasets.reading import plan_chunks, read_chunk
from mlet_tf.datasets.times import iso_seconds, parse_iso
from mlet_tf.errors import InputError

SHOP = ClickLogSchema.from_dict(
    {
        "name": "shop",
        "label": "y",
        "categoricals": ["c"],
        "separator": ",",
        "positive": ["click"],
        "negative": ["no click"],
    }
)
TIMED = dataclasses.replace(
    SHOP, positive=(), negative=(), time=TimeColumn("at", "iso8601"), columns=("y", "at", "c")
)


def read(path, schema):
    (chunk,) = plan_chunks([str(path)], schema, 1 << 40)
    (block,) = read_chunk(chunk, schema)
    return block.table, [(reject.line, reject.reason) for reject in block.rejects]


def test_labels_in_text(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text('click,a\n"no click",b\nno click,c\n')
    table, rejects = read(path, SHOP)
    assert (table["y"].to_pylist(), rejects) == ([1, 0, 0], [])
    path.write_text("click,a\nClick,b\n,c\n1,d\nno click,e\n")
    table, rejects = read(path, SHOP)
    assert table["y"].to_pylist() == [1, 0]
    expected = "column 'y' should be 'click', or 'no click'. Received: "
    assert rejects == [(2, expected + "'Click'"), (3, expected + "no value"), (4, expected + "'1'")]


@pytest.mark.parametrize(
    ("positive", "texts", "arrow"),
    [
        (["1"], ["1", "-1", "1.0"], pa.array([1, -1, 1])),
        (["true"], ["true", "false", "true"], pa.array([True, False, True])),
        (["yes", "y"], ["yes", "no", "y"], pa.array(["yes", "no", "y"]).dictionary_encode()),
        (["2", "3"], ["2", "0", "3"], pa.array([2.0, 0.0, 3.0])),
    ],
)
def test_any_other_label_is_no_click_where_only_positive_ones_are_named(tmp_path, positive, texts, arrow):
    schema = dataclasses.replace(SHOP, positive=tuple(positive), negative=())
    (tmp_path / "log.csv").write_text("".join(f"{text},a\n" for text in texts))
    pq.write_table(pa.table({"y": arrow, "c": ["a"] * 3}), tmp_path / "log.parquet")
    for name in ("log.csv", "log.parquet"):
        table, rejects = read(tmp_path / name, schema)
        assert (table["y"].to_pylist(), rejects) == ([1, 0, 1], [])


def test_truth_values_are_labels_however_the_schema_writes_them(tmp_path):
    """`True` in text is a truth value in Parquet: all rows were no click, without a word."""
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"y": [True, False], "c": ["a", "b"]}), path)
    for positive, negative, labels in (
        ("True", (), [1, 0]),
        ("TRUE", ("FALSE",), [1, 0]),
        ("1", ("0",), [1, 0]),
        ("false", (), [0, 1]),
    ):
        schema = dataclasses.replace(SHOP, positive=(positive,), negative=negative)
        table, rejects = read(path, schema)
        assert (table["y"].to_pylist(), rejects) == (labels, [])
    with pytest.raises(
        InputError, match=r"column 'y' should hold label texts such as 'click'. Received: truth"
    ):
        plan_chunks([str(path)], SHOP)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive": ["a"], "negative": ["a"]}, "should have no text in common. Received: 'a'"),
        ({"positive": [], "negative": ["a"]}, "`negative` should come with `positive`. Received: 'a' alone"),
        (
            {"positive": [True]},
            r"`positive` should be a list of label texts (write '1' and 'true' in quotes)",
        ),
        ({"positive": "click"}, "`positive` should be a list of label texts"),
        ({"positive": ["NA"], "missing": ["NA"]}, "`missing` should hold no label text. Received: 'NA'"),
    ],
)
def test_label_texts_that_do_not_fit_are_named(change, message):
    with pytest.raises(InputError) as caught:
        ClickLogSchema.from_dict({"name": "s", "label": "y", "categoricals": ["c"], **change})
    assert message in str(caught.value)


MOMENTS = st.datetimes(datetime.datetime(1970, 1, 2), datetime.datetime(9999, 12, 30))
ZONES = st.none() | st.integers(-14 * 60, 14 * 60).map(
    lambda m: datetime.timezone(datetime.timedelta(minutes=m))
)


def graph_seconds(texts):
    from mlet_tf.features.times import iso_seconds as in_graph

    return in_graph(np.array(texts, object)).numpy().tolist()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(MOMENTS, ZONES, st.sampled_from("T "), st.sampled_from(["auto", "seconds", "minutes"])),
        min_size=1,
    )
)
def test_iso_times_are_those_of_pythons_datetime_in_reader_client_and_graph(moments):
    texts, expected = [], []
    for moment, zone, separator, precision in moments:
        text = moment.replace(tzinfo=zone).isoformat(separator, precision)
        texts.append(text.encode())
        read_back = datetime.datetime.fromisoformat(text)
        expected.append(read_back if zone else read_back.replace(tzinfo=datetime.UTC))
    seconds = [int(moment.timestamp() // 1) for moment in expected]
    found, bad = iso_seconds(pa.array(texts))
    assert not bad.any()
    assert found.to_pylist() == seconds == [parse_iso(text) for text in texts] == graph_seconds(texts)


def test_forms_of_iso_times_and_what_is_none():
    same = ["2014-10-21T01:00:00Z", "2014-10-21 01:00", "2014-10-21t01z", "2014-10-21T03:00:00,25+02"]
    same += ["2014-10-21 01:00:00 UTC", "2014-10-20T20:30:00.5-0430"]
    assert len(set(graph_seconds(same))) == 1
    assert iso_seconds(pa.array(same))[0].to_pylist() == graph_seconds(same)
    bad = [
        "2014-02-29",
        "2014-13-01",
        "2014-1-1",
        "20141021",
        "2014-10-21T24:00",
        "2014-10-21T01:60",
        "x",
        "",
        "2014-10-21Z",
    ]
    values, marked = iso_seconds(pa.array([*bad, None, "2016-02-29"]))
    assert marked.tolist() == [True] * len(bad) + [False, False]
    assert values.to_pylist()[-2:] == [None, 1456704000]
    for text in bad:
        with pytest.raises(ValueError, match=f"^b'{text}'$"):
            parse_iso(text.encode())


def test_a_column_of_iso_times_in_text_and_parquet(tmp_path):
    (tmp_path / "log.csv").write_text("0,2014-10-21T03:30:00+02:00,a\n1,tomorrow,b\n1,,c\n1,2014-10-22,d\n")
    table, rejects = read(tmp_path / "log.csv", TIMED)
    assert table["at"].to_pylist() == [1413855000, 1413936000]
    expected = "column 'at' should be a time (iso8601). Received: "
    assert rejects == [(2, expected + "'tomorrow'"), (3, expected + "no value")]
    naive = pa.array([datetime.datetime(2014, 10, 21, 1, 30)], pa.timestamp("ns"))
    for column in (
        naive,
        naive.cast(pa.timestamp("ms")),
        pa.array(["2014-10-21T01:30Z"]),
        pa.array([1413855000]),
    ):
        pq.write_table(pa.table({"y": [0], "at": column, "c": ["a"]}), tmp_path / "log.parquet")
        assert read(tmp_path / "log.parquet", TIMED)[0]["at"].to_pylist() == [1413855000]
    hours = dataclasses.replace(TIMED, time=TimeColumn("at"))
    pq.write_table(pa.table({"y": [0], "at": naive, "c": ["a"]}), tmp_path / "log.parquet")
    assert read(tmp_path / "log.parquet", hours)[0]["at"].to_pylist() == [14102101]


@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_synthetic_log_quotes_names_and_labels_as_it_is_read(tmp_path, separator):
    """A label with a separator was written bare, and names with quotes also where files have no quotes."""
    label = "yes, a click" if separator == "," else 'a "click"'
    columns = ('say "y"', "c")
    schema = dataclasses.replace(
        SHOP,
        label=columns[0],
        columns=columns,
        separator=separator,
        header=True,
        positive=(label,),
        negative=("no",),
    )
    write_log(tmp_path / "log.txt", schema, 300)
    table = pa.concat_tables(read_log(str(tmp_path / "log.txt"), schema, max_reject_share=0))
    assert len(table) == 300 and set(table[columns[0]].to_pylist()) == {0, 1}


def test_a_synthetic_log_has_the_labels_and_times_of_its_schema(tmp_path):
    schema = dataclasses.replace(
        TIMED, positive=("yes",), negative=("no",), header=True, columns=("at", "y", "c")
    )
    tables = []
    for name in ("log.csv", "log.parquet"):
        write_log(tmp_path / name, schema, 300)
        tables.append(
            pa.concat_tables(read_log(str(tmp_path / name), schema, max_reject_share=0)).combine_chunks()
        )
    assert tables[0] == tables[1]
    assert set(tables[0]["y"].to_pylist()) == {0, 1}
    first = (tmp_path / "log.csv").read_text().splitlines()[1]
    assert first.startswith("2014-10-20T00:00:00Z,") and first.split(",")[1] in ("yes", "no")
