"""Reading raw logs: every row arrives or is rejected with its line, however the file is written and cut."""

import dataclasses
import gzip
import os
import re
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mlet_tf.datasets import AVAZU, CRITEO, ClickLogSchema, TimeColumn
from mlet_tf.datasets.reading import (
    arrow_schema,
    lines_before,
    list_files,
    plan_chunks,
    read_chunk,
    read_log,
)
from mlet_tf.datasets.times import derive, hours_since_1970, valid_times, yymmddhh
from mlet_tf.errors import InputError

TINY = ClickLogSchema(
    name="tiny",
    label="y",
    integers=("i",),
    categoricals=("a", "b"),
    time=TimeColumn("t", "yymmddhh"),
    drop=("id",),
    columns=("id", "y", "i", "t", "a", "b"),
    separator="\t",
    header=False,
    missing=("", "NA"),
)
GOOD = b"7\t1\t-3\t14102100\tx\tNA"


def read_all(path, schema=TINY, chunk_bytes=1 << 20, block_bytes=1 << 20, max_line_bytes=1 << 16):
    """Reads chunk by chunk; returns rows as dictionaries, their positions, and (line, reason) of the rejects."""
    chunks = plan_chunks([str(path)], schema, chunk_bytes)
    rows, positions, rejects, lines = [], [], [], []
    for chunk in chunks:
        before = lines_before(chunks, lines, schema)[-1]
        lines.append(0)
        for block in read_chunk(chunk, schema, None, block_bytes, max_line_bytes):
            assert block.table.schema == arrow_schema(schema)
            rows += block.table.to_pylist()
            positions += block.positions.tolist()
            rejects += [(reject.line + before, reject.reason) for reject in block.rejects]
            lines[-1] += block.lines
    return rows, positions, rejects


def reference(data):
    """What TINY means, row by row."""
    rows, positions, bad = [], [], []
    offset = 0
    for number, raw in enumerate(data.split(b"\n"), 1):
        line = raw.removesuffix(b"\r")
        start, offset = offset, offset + len(raw) + 1
        if not line:
            continue
        fields = line.split(b"\t")
        try:
            line.decode("utf-8")
            if b"\0" in line or b"\r" in line or len(fields) != 6:
                raise ValueError
            label, integer, time = (None if f in (b"", b"NA") else to_int(f) for f in fields[1:4])
            if label not in (0, 1) or time is None or not valid_times(np.array([time]), TINY.time)[0]:
                raise ValueError
        except ValueError:
            bad.append(number)
            continue
        category = [None if f in (b"", b"NA") else re.sub(rb"^([0-9]+)\.0$", rb"\1", f) for f in fields[4:]]
        rows.append({"y": label, "i": integer, "t": time, "a": category[0], "b": category[1]})
        positions.append(start)
    return rows, positions, bad


def to_int(field):
    text = field.decode().strip(" ")
    digits = text.removeprefix("-")
    if digits[:2].lower() == "0x" and digits == text:
        if not 3 <= len(text) <= 18 or not all(c in "0123456789abcdefABCDEF" for c in digits[2:]):
            raise ValueError
        value = int(text, 16)
    elif digits.isascii() and digits.isdigit():
        value = int(text)
    elif digits == "5.0":
        value = 5
    else:
        raise ValueError
    if not -(2**63) <= value < 2**63:
        raise ValueError
    return value


ODD = [
    b"",
    b"NA",
    b"0",
    b"1",
    b"2",
    b"-5",
    b"+5",
    b"5.0",
    b" 7 ",
    b"x",
    b'"',
    b'"a',
    b"\xff",
    b"\xc3\xa9",
    b"\0",
]
ODD += [b"9223372036854775807", b"9223372036854775808", b"-9223372036854775809", b"0x1f", b"0x", b"a\rb"]
ODD += [b"14102100", b"14103124", b"14023000", b"long" * 40, b"9" * 5000]
FIELDS = st.sampled_from(ODD) | st.integers(-(10**6), 10**6).map(lambda value: str(value).encode())
LINES = st.one_of(
    st.just(GOOD),
    st.just(b"1\t0\t\t14102123\t\t'"),
    st.just(b""),
    st.lists(FIELDS, min_size=5, max_size=7).map(b"\t".join),
    st.tuples(FIELDS, FIELDS, FIELDS).map(lambda f: b"\t".join([b"8", b"1", f[0], b"14102100", f[1], f[2]])),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(LINES, min_size=1, max_size=25),
    line_end=st.sampled_from([b"\n", b"\r\n"]),
    last_end=st.booleans(),
    chunk_bytes=st.integers(5, 400),
    block_bytes=st.integers(1, 300),
    zipped=st.booleans(),
)
@example([GOOD, b"1\t1\t0x1F\t14102100\t\t"], b"\n", False, 400, 300, False)
def test_any_text_gives_the_rows_and_rejects_of_a_row_by_row_reader(
    tmp_path, lines, line_end, last_end, chunk_bytes, block_bytes, zipped
):
    data = GOOD + line_end + line_end.join(lines) + (line_end if last_end else b"")
    path = tmp_path / ("log.gz" if zipped else "log")
    path.write_bytes(gzip.compress(data) if zipped else data)
    rows, positions, bad = reference(data)
    read_rows, read_positions, rejects = read_all(path, TINY, chunk_bytes, block_bytes)
    assert read_rows == rows
    assert read_positions == positions
    assert [line for line, _ in rejects] == bad


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"7\t1\t2\t14102100\tx", "expected 6 columns. Received: 5"),
        (b"7\t1\t2\t14102100\tx\ty\tz", "expected 6 columns. Received: 7"),
        (b"7\t1\ttwo\t14102100\tx\ty", "column 'i' should be an integer. Received: 'two'"),
        (b"7\t1\t1e3\t14102100\tx\ty", "column 'i' should be an integer. Received: '1e3'"),
        (b"7\t2\t1\t14102100\tx\ty", "column 'y' should be 0 or 1. Received: '2'"),
        (b"7\t\t1\t14102100\tx\ty", "column 'y' should be 0 or 1. Received: no value"),
        (b"7\t1\t1\t14133100\tx\ty", "column 't' should be a time (yymmddhh). Received: '14133100'"),
        (b"7\t1\t1\tNA\tx\ty", "column 't' should be a time (yymmddhh). Received: no value"),
        (b"7\t1\t1\t14102100\tx\0\ty", "the line holds a NUL byte"),
        (b"7\t1\t1\t14102100\t\xff\ty", "the line is not UTF-8"),
        (b"7\t1\t1\t14102100\ta\rb\ty", "a carriage return stands inside the line"),
    ],
)
def test_a_bad_row_is_rejected_with_file_line_and_reason(tmp_path, line, reason):
    path = tmp_path / "log.tsv"
    path.write_bytes(b"\n".join([GOOD] * 4 + [line] + [GOOD] * 4) + b"\n")
    for sizes in ({}, {"chunk_bytes": 50}, {"block_bytes": 30}):
        rows, _, rejects = read_all(path, **sizes)
        assert rejects == [(5, reason)]
        assert len(rows) == 8
    with pytest.raises(InputError) as caught:
        list(read_log(str(path), TINY))
    assert str(caught.value).startswith("1 of 9 rows were rejected (11.11%); allowed is a share of 0.10%.")
    assert f"{path}:5: {reason}" in str(caught.value)


def test_ten_rejects_are_shown_and_a_share_of_them_may_be_allowed(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_bytes((GOOD + b"\nbad\n") * 50)
    with pytest.raises(InputError) as caught:
        list(read_log(str(path), TINY, block_bytes=64))
    assert [int(line.split(":")[1]) for line in str(caught.value).splitlines()[1:]] == list(range(2, 21, 2))
    assert sum(map(len, read_log(str(path), TINY, max_reject_share=0.5))) == 50


def test_a_line_over_the_bound_is_rejected(tmp_path):
    path = tmp_path / "log.tsv"
    lines = [GOOD, GOOD.replace(b"x", b"x" * 100), GOOD]
    path.write_bytes(b"\n".join(lines))
    for block_bytes in (16, 1 << 20):
        rows, _, rejects = read_all(path, block_bytes=block_bytes, max_line_bytes=80)
        assert (len(rows), rejects) == (2, [(2, "the line should have at most 80 bytes. Received: more")])


@pytest.mark.parametrize("zipped", [False, True])
def test_a_header_may_be_as_long_as_a_line(tmp_path, zipped):
    names = [f"a_long_column_name_{i:06d}" for i in range(3001)]
    schema = dataclasses.replace(
        TINY,
        integers=(),
        categoricals=(names[-1],),
        time=None,
        drop=(),
        columns=("y", names[-1]),
        separator=",",
        header=True,
    )
    data = f"y,{','.join(names)}\n1{',c' * 3001}\n0{',d' * 3001}\n".encode()
    path = tmp_path / "log.csv"
    path.write_bytes(gzip.compress(data) if zipped else data)
    rows, _, rejects = read_all(path, schema)
    assert rows == [{"y": 1, names[-1]: b"c"}, {"y": 0, names[-1]: b"d"}]
    assert not rejects
    path.write_bytes(b"y," + b"x" * (2 << 20))
    message = _message(lambda: plan_chunks([str(path)], schema))
    assert message == f"{path}: the header should have at most 1048576 bytes. Received: more"


def test_a_huge_line_costs_no_memory(tmp_path):
    path = tmp_path / "log.tsv"
    with path.open("wb") as file:
        file.write(GOOD + b"\n")
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b"\n" + GOOD + b"\n")
    tracemalloc.start()
    try:
        rows, _, rejects = read_all(path, chunk_bytes=16 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(rows), rejects) == (2, [(2, "the line should have at most 65536 bytes. Received: more")])
    assert peak < 8 << 20


def test_crlf_bom_quotes_and_empty_lines_are_tolerated(tmp_path):
    schema = AVAZU
    header = ",".join(AVAZU.columns)
    row = "10000,1,14102100,1005,0,\"site,b,c,d,e'f,g,h,i,j,k,1,2,3,4,5,6,7,8,9"
    path = tmp_path / "log.csv"
    path.write_bytes(("\ufeff" + "\r\n".join([header, row, "", row, ""])).encode())
    rows, _, rejects = read_all(path, schema)
    assert len(rows) == 2
    assert not rejects
    assert (rows[0]["site_id"], rows[1]["app_domain"]) == (b'"site', b"e'f")
    shuffled = tmp_path / "shuffled.csv"
    names = ["more", *reversed(AVAZU.columns)]
    fields = ["m", *reversed(row.split(","))]
    shuffled.write_text(f"{','.join(names)}\n{','.join(fields)}\n")
    assert read_all(shuffled, schema)[0] == rows[:1]


def test_parquet_gives_the_same_rows_whatever_types_a_writer_chose(tmp_path):
    data = b"\n".join([GOOD, b"8\t0\t\t14102123\t5\tz", b"9\t1\t4\t14102200\t\t\xc3\xa9"] * 20)
    text = tmp_path / "log"
    text.write_bytes(data)
    rows = read_all(text)[0]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    plain = pa.table(
        {**columns, "id": [str(i) for i in range(60)]},
        schema=pa.schema([*arrow_schema(TINY), pa.field("id", pa.string())]),
    )
    loose = pa.table(
        {
            "b": pa.array([None if v is None else v.decode() for v in columns["b"]]).dictionary_encode(),
            "a": pa.array([v or b"NA" for v in columns["a"]], pa.large_binary()),
            "t": pa.array([str(v) for v in columns["t"]]),
            "i": pa.array([float("nan") if v is None else v for v in columns["i"]], pa.float64()),
            "y": pa.array([bool(v) for v in columns["y"]]),
        }
    )
    for name, table in (("plain", plain), ("loose", loose)):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path, row_group_size=7)
        read, positions, rejects = read_all(path, chunk_bytes=600)
        assert len(plan_chunks([str(path)], TINY, 600)) > 2
        assert (read, positions, rejects) == (rows, list(range(60)), [])


def test_a_column_without_any_value_is_missing_everywhere(tmp_path):
    columns = {"y": [0, 1], "i": pa.nulls(2), "t": [14102100, 14102101], "a": pa.nulls(2), "b": ["x", "y"]}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    (tmp_path / "log.tsv").write_bytes(b"7\t0\t\t14102100\t\tx\n7\t1\t\t14102101\t\ty\n")
    rows, _, rejects = read_all(tmp_path / "log.parquet")
    assert rows == read_all(tmp_path / "log.tsv")[0]
    assert [(row["i"], row["a"], row["b"]) for row in rows] == [(None, None, b"x"), (None, None, b"y")]
    assert not rejects


def test_marks_of_missing_values_hold_for_numbers_in_parquet_too(tmp_path):
    schema = dataclasses.replace(TINY, missing=("-1", "NA"))
    columns = {"y": [0, 1], "i": [-1, 5], "t": [14102100, 14102101], "a": [-1, -2], "b": ["NA", "-1"]}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    rows, _, rejects = read_all(tmp_path / "log.parquet", schema)
    assert [(row["i"], row["a"], row["b"]) for row in rows] == [(None, None, None), (5, b"-2", None)]
    assert not rejects


def test_bad_values_in_parquet_are_rejected_by_row(tmp_path):
    path = tmp_path / "log.parquet"
    table = pa.table(
        {
            "y": pa.array([0.0, 1.0, 0.5, None, 0.0, 1.0]),
            "i": pa.array(["1", "x", "1", "1", "1", "1"]),
            "t": pa.array([14102100] * 5 + [99]),
            "a": pa.array([b"a", b"b", b"c", b"d", b"\xff", b"e"], pa.binary()),
            "b": pa.array([1, 2, 3, 4, 5, 6]),
        }
    )
    pq.write_table(table, path, row_group_size=2)
    for chunk_bytes in (1, 1 << 20):
        rows, _, rejects = read_all(path, chunk_bytes=chunk_bytes)
        assert [row["b"] for row in rows] == [b"1"]
        assert rejects == [
            (2, "column 'i' should be an integer. Received: 'x'"),
            (3, "column 'y' should be 0 or 1. Received: 0.5"),
            (4, "column 'y' should be 0 or 1. Received: no value"),
            (5, "column 'a' should be UTF-8 text without a NUL byte. Received: '\\\\xff'"),
            (6, "column 't' should be a time (yymmddhh). Received: 99"),
        ]


@pytest.mark.parametrize("kind", [pa.binary(), pa.string(), pa.large_binary(), "dictionary"])
def test_text_for_an_integer_that_is_not_utf8_rejects_its_row_only(tmp_path, kind):
    texts = pa.array([b"1", b"\xff", None, b"-3"], pa.binary())
    if kind == "dictionary":
        texts = texts.dictionary_encode()
    else:
        texts = texts.view(kind) if kind == pa.string() else texts.cast(kind)
    columns = {"y": [0, 1, 0, 1], "i": texts, "t": [14102100] * 4, "a": ["x"] * 4, "b": ["y"] * 4}
    pq.write_table(pa.table(columns), tmp_path / "log.parquet")
    rows, positions, rejects = read_all(tmp_path / "log.parquet")
    assert [row["i"] for row in rows] == [1, None, -3]
    assert positions == [0, 2, 3]
    assert rejects == [(2, "column 'i' should be an integer. Received: '\\\\xff'")]


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_row_of_parquet_with_too_much_text_is_rejected(tmp_path, dictionary):
    texts = ["x", "x" * 90, "y" * 40, None, "z" * 81]
    columns = {
        "y": [0, 1, 0, 1, 0],
        "i": [1] * 5,
        "t": [14102100] * 5,
        "a": texts,
        "b": ["b" * 40, "", *["b" * 40] * 3],
    }
    columns["i"][4] = None
    table = pa.table(columns)
    if dictionary:
        table = table.set_column(3, "a", table["a"].dictionary_encode())
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=3, use_dictionary=dictionary)
    for block_bytes in (1, 100, 1 << 20):
        rows, positions, rejects = read_all(
            tmp_path / "log.parquet", block_bytes=block_bytes, max_line_bytes=80
        )
        assert [row["a"] for row in rows] == [b"x", b"y" * 40, None]
        assert positions == [0, 2, 3]
        assert rejects == [
            (2, "the row should have at most 80 bytes of text. Received: 90"),
            (5, "the row should have at most 80 bytes of text. Received: 121"),
        ]


@pytest.mark.parametrize(
    ("rows", "distinct"), [(100, True), (1000, False)], ids=["large values", "one large value"]
)
def test_large_values_in_parquet_are_held_a_few_at_a_time(tmp_path, rows, distinct):
    """All rows together have 100 MB of text or more."""
    size = (1 << 20) if distinct else 100_000
    values = pa.array([f"{i:08d}" * (size // 8) for i in range(rows if distinct else 1)])
    texts = values if distinct else pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), values)
    columns = {"y": [0] * rows, "i": [1] * rows, "t": [14102100] * rows, "a": texts, "b": pa.nulls(rows)}
    pq.write_table(
        pa.table(columns), tmp_path / "log.parquet", write_batch_size=1, use_dictionary=not distinct
    )
    (chunk,) = plan_chunks([str(tmp_path / "log.parquet")], TINY)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        assert sum(block.table.num_rows for block in read_chunk(chunk, TINY, block_bytes=2 << 20)) == rows
    finally:
        pa.set_memory_pool(before)
    assert 1 << 20 < pool.max_memory() < 24 << 20


def _message(call):
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_what_is_wrong_with_a_whole_file_is_said_at_once(tmp_path):
    def plan(name, data, schema=CRITEO):
        path = tmp_path / name
        path.write_bytes(data)
        return _message(lambda: plan_chunks(list_files(str(path)), schema)).replace(str(tmp_path), "")

    criteo = b"\t".join([b"1", *[b"2"] * 13, *[b"c"] * 26])
    assert plan("empty.tsv", b"") == "/empty.tsv is empty (0 bytes): expected rows of a click log"
    assert "/empty.gz is empty (0 bytes when uncompressed)" in plan("empty.gz", gzip.compress(b""))
    assert "have 1 column(s) instead of 40; the separator ',' would fit" in plan(
        "commas.tsv", b"\n".join([criteo.replace(b"\t", b",")] * 3)
    )
    assert (
        "each of the first 20 rows should have 40 columns (schema 'criteo', separator '\\t'). Received: 39"
        in plan("test.txt", b"\n".join([criteo[2:]] * 20))
    )
    header = ",".join(AVAZU.columns).encode()
    assert (
        "has no column 'banner_pos', which schema 'avazu' expects. Did you mean 'banner_position'?"
        in plan("named.csv", header.replace(b"banner_pos", b"banner_position") + b"\n", AVAZU)
    )
    assert "should name column 'C1' once. Received: 2 times" in plan("twice.csv", header + b",C1\n", AVAZU)
    assert (
        "the header is one column with the separator ',' of schema 'avazu'; the separator ';' would fit"
        in plan("semicolons.csv", header.replace(b",", b";") + b"\n", AVAZU)
    )
    assert "is not a readable Parquet file" in plan("x.parquet", b"PAR1 and no more")
    assert "is a damaged gzip file: reading failed after 0 uncompressed bytes" in plan(
        "x.gz", b"not gzip at all"
    )
    table = pa.table({name: [["x"]] if name == "C3" else ["1"] for name in CRITEO.columns})
    pq.write_table(table, tmp_path / "types.parquet")
    assert "column 'C3' should hold text or integers. Received: list" in _message(
        lambda: plan_chunks([str(tmp_path / "types.parquet")], CRITEO)
    )


def test_damage_inside_a_gzip_file_is_located(tmp_path):
    lines = [b"%d\t1\t%d\t14102100\t%d\tb" % (i, i * 7919 % 1000, i * 104729 % 9999) for i in range(20_000)]
    zipped = gzip.compress(b"\n".join(lines))
    path = tmp_path / "log.gz"
    path.write_bytes(zipped[: len(zipped) // 2])
    message = _message(lambda: list(read_log(str(path), TINY, block_bytes=10_000)))
    assert f"{path} is a damaged gzip file: reading failed after" in message
    assert f"of {len(zipped) // 2} (" in message
    damaged = bytearray(zipped)
    damaged[len(zipped) // 2] ^= 255
    path.write_bytes(bytes(damaged))
    assert "is a damaged gzip file" in _message(lambda: list(read_log(str(path), TINY, block_bytes=10_000)))


def test_damage_inside_a_parquet_file_is_said(tmp_path):
    path = tmp_path / "log.parquet"
    columns = {
        "y": [0] * 999,
        "i": list(range(999)),
        "t": [14102100] * 999,
        "a": ["x"] * 999,
        "b": ["y"] * 999,
    }
    pq.write_table(pa.table(columns), path, row_group_size=100)
    data = bytearray(path.read_bytes())
    middle = pq.ParquetFile(path).metadata.row_group(5).column(1).data_page_offset
    data[middle : middle + 60] = b"\xff" * 60
    path.write_bytes(bytes(data))
    assert f"{path} is a damaged Parquet file: reading failed near row" in _message(
        lambda: list(read_log(str(path), TINY))
    )


def test_files_patterns_and_folders(tmp_path):
    for name in ("b.tsv", "a.tsv.gz", ".hidden", "_SUCCESS", "b.tsv.teacher.json"):
        (tmp_path / name).write_bytes(gzip.compress(GOOD) if name.endswith("gz") else GOOD)
    (tmp_path / "inside").mkdir()
    both = [str(tmp_path / "a.tsv.gz"), str(tmp_path / "b.tsv")]
    assert list_files(str(tmp_path)) == both
    assert list_files(f"{tmp_path}/*") == both
    assert list_files(f"{tmp_path}/b*") == both[1:]
    assert list_files(f"file://{tmp_path}") == [f"file://{path}" for path in both]
    assert sum(map(len, read_log(str(tmp_path), TINY))) == 2
    assert sum(map(len, read_log(f"file://{tmp_path}", TINY))) == 2
    assert "No file found at" in _message(lambda: list_files(f"{tmp_path}/*.parquet"))
    assert "No file found at" in _message(lambda: list_files(f"{tmp_path}/gone.tsv"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_bytes(GOOD)
    path.chmod(0)
    assert f"{path} cannot be read: Permission denied" in _message(lambda: plan_chunks([str(path)], TINY))


@settings(max_examples=200)
@given(st.integers(262_968, 1_139_567))  # the hours of 2000 to 2099
def test_times_agree_with_the_calendar(hour):
    calendar = np.datetime64("1970-01-01T00") + np.timedelta64(hour, "h")
    moment = calendar.item()
    value = yymmddhh(np.array([hour]))
    column = TimeColumn("t")
    assert value[0] == int(moment.strftime("%y%m%d%H"))
    assert valid_times(value, column).all()
    assert hours_since_1970(value, column)[0] == hour
    for times, unit in ((value, column), (np.array([hour * 3600 + 17]), TimeColumn("t", "unix_seconds"))):
        parts = derive(times, unit)
        assert (parts["hour_of_day"][0], parts["weekday"][0]) == (moment.hour, moment.weekday())


def test_numbers_that_are_no_times_are_found():
    bad = np.array([-1, 0, 14130100, 14023000, 14102124, 15022900, 114102100, 14100000])
    assert not valid_times(bad, TimeColumn("t")).any()
    seconds = np.array([-1, 1413849600000])
    assert not valid_times(seconds, TimeColumn("t", "unix_seconds")).any()


@pytest.mark.parametrize(
    ("name", "schema", "rows"),
    [("criteo_sample.tsv.gz", CRITEO, 13_513), ("avazu_sample.csv.gz", AVAZU, 205_855)],
)
def test_every_row_of_the_real_samples_is_read(samples, name, schema, rows):
    assert sum(map(len, read_log(str(samples / name), schema, max_reject_share=0))) == rows
