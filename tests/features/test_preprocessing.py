"""The preprocessing graph against plain Python and against stock tensorflow-transform."""

import datetime
import math
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from hypothesis import given, settings
from hypothesis import strategies as st
from tests_support import run_example_gen, run_transform

from mlet_tf.datasets import AVAZU, CRITEO, ClickLogSchema, TimeColumn
from mlet_tf.datasets.synthetic import write_log
from mlet_tf.features.ingestion.report import COUNTS_FOLDER
from mlet_tf.features.preprocessing import time_part

SCHEMA = ClickLogSchema(
    name="little",
    label="click",
    integers=("i",),
    categoricals=("c", "empty"),
    time=TimeColumn("hour", "yymmddhh", ("hour_of_day", "weekday")),
    drop=(),
    columns=("click", "i", "c", "empty", "hour"),
    separator=",",
    header=True,
    missing=("",),
)
# a x5, b x4, d and c x3 (a tie), e x2, f x1
VALUES = list("aaaaabbbbcccdddeef")
QUERY = [
    {"i": [-7], "c": [b"a"], "empty": [], "hour": [14102105]},
    {"i": [], "c": [b"d"], "empty": [b"x"], "hour": [14102105]},
    {"i": [0], "c": [b"e"], "empty": [], "hour": [14102105]},
    {"i": [3], "c": [], "empty": [], "hour": []},
]


def _sparse(name, rows):
    dtype = np.int64 if name in ("i", "hour") else object
    values = [row[name] for row in rows]
    flat = np.array([value for row in values for value in row], dtype=dtype)
    return tf.RaggedTensor.from_row_lengths(flat, [len(row) for row in values]).to_sparse()


def _query(output, rows):
    features = {name: _sparse(name, rows) for name in SCHEMA.raw_features}
    return {key: np.asarray(value) for key, value in output.transform_raw_features(features).items()}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The graph made from a log whose evaluation rows have values of their own."""
    folder = tmp_path_factory.mktemp("transform")
    lines = [f"{i % 2},{i - 4 if i % 3 else ''},{value},,{14102100 + i}" for i, value in enumerate(VALUES)]
    header = ",".join(SCHEMA.columns)
    (folder / "train.csv").write_text("\n".join([header, *lines]))
    (folder / "eval.csv").write_text(f"{header}\n1,5,f,x,14102100\n1,5,f,x,14102100\n")
    examples = run_example_gen(
        folder / "examples", SCHEMA, folder / "train.csv", str(folder / "eval.csv"), method="files"
    )
    return run_transform(
        folder,
        SCHEMA,
        examples,
        max_size=3,
        num_oov_buckets=2,
        rare_below=4,
        frequency_slices=["c"],
    )


@pytest.fixture(scope="module")
def transformed(output):
    return _query(output, QUERY)


def test_integers_are_signed_log1p_with_missing_kept_apart(transformed):
    log = [-math.log1p(7), 0.0, 0.0, math.log1p(3)]
    np.testing.assert_allclose(transformed["dense_features"], np.c_[log, [0, 1, 0, 0]], rtol=1e-6)


def test_ids_are_ranked_then_oov_then_missing(transformed):
    ids = transformed["sparse_features"]
    assert ids[0, 0] == 0  # a, the most frequent
    assert ids[1, 0] == 2  # d ties with c and is kept first, as tft orders ties
    assert ids[2, 0] in (3, 4)  # e is beyond the size cap
    assert ids[3, 0] == 5  # missing
    assert list(ids[:, 1]) == [3, ids[1, 1], 3, 3]  # a column that train never filled
    assert ids[1, 1] in (1, 2)
    assert ids[3, 2] != ids[0, 2]


def test_frequency_buckets(transformed):
    assert list(transformed["frequency"][:, 0]) == [0, 1, 2, 3]


def test_ids_equal_stock_tft(tmp_path, output):
    def stock(inputs):
        return {
            "c": tft.compute_and_apply_vocabulary(
                inputs["c"], top_k=3, frequency_threshold=2, num_oov_buckets=2
            )
        }

    spec = {"c": tf.io.FixedLenFeature([], tf.string)}
    with beam.Pipeline() as pipeline, tft_beam.Context(temp_dir=str(tmp_path / "tmp")):
        data = pipeline | beam.Create([{"c": value.encode()} for value in VALUES])
        transform_fn = (data, tft.DatasetMetadata.from_feature_spec(spec)) | tft_beam.AnalyzeDataset(stock)
        _ = transform_fn | tft_beam.WriteTransformFn(str(tmp_path / "out"))
    query = [*"abcdefgh", "never seen", "\u00e9"]
    stock_output = tft.TFTransformOutput(str(tmp_path / "out"))
    expected = stock_output.transform_raw_features({"c": tf.constant(query)})["c"]
    rows = [{**QUERY[0], "c": [value.encode()]} for value in query]
    np.testing.assert_array_equal(_query(output, rows)["sparse_features"][:, 0], expected)


def test_vocabularies_equal_stock_tft_on_a_log(tmp_path):
    """With counts spread over many runs that are added up a few values at a time."""
    write_log(tmp_path / "log.tsv", CRITEO, 1500, seed=3, vocabulary=3000, rank=2)
    examples = run_example_gen(tmp_path / "examples", CRITEO, tmp_path / "log.tsv", chunk_bytes=60_000)
    assert len(list(Path(examples.uri, COUNTS_FOLDER).iterdir())) > 4
    sizes = (None, 50)

    def ours(max_size):
        output = run_transform(
            tmp_path / str(max_size), CRITEO, examples, max_size=max_size, max_values_in_memory=100
        )
        assets = Path(output.transform_savedmodel_dir, "assets")
        return {name: (assets / f"vocabulary_{name}.txt").read_bytes() for name in CRITEO.sparse_features}

    found = {max_size: ours(max_size) for max_size in sizes}
    names = sorted(CRITEO.sparse_features, key=lambda name: len(found[None][name]))[1::12]
    spec = {name: tf.io.VarLenFeature(tf.string) for name in names}

    def stock(inputs):
        for name, column in inputs.items():
            for max_size in sizes:
                tft.vocabulary(
                    column, top_k=max_size, frequency_threshold=2, vocab_filename=f"{name}_{max_size}"
                )
        return inputs

    files = sorted(str(path) for path in Path(examples.uri, "Split-train").iterdir())
    records = tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator()
    parsed = [tf.train.Example.FromString(record).features.feature for record in records]
    rows = [{name: list(row[name].bytes_list.value) for name in names} for row in parsed]
    with beam.Pipeline() as pipeline, tft_beam.Context(temp_dir=str(tmp_path / "tmp")):
        data = pipeline | beam.Create(rows)
        transform_fn = (data, tft.DatasetMetadata.from_feature_spec(spec)) | tft_beam.AnalyzeDataset(stock)
        _ = transform_fn | tft_beam.WriteTransformFn(str(tmp_path / "out"))
    for name in names:
        for max_size in sizes:
            expected = (tmp_path / "out" / "transform_fn" / "assets" / f"{name}_{max_size}").read_bytes()
            assert found[max_size][name] == expected


def test_odd_categories_have_ids_like_any_other(tmp_path):
    """Quotes, tabs, accents; lines that end in CRLF; eval fills a column that train leaves empty."""
    odd = ['"', 'a"b"', "a\tb", "\u00e9", "0", " ", "\\n"]
    lines = [f"1,5,{value},,14102100" for value in odd for _ in range(2)]
    header = ",".join(SCHEMA.columns)
    (tmp_path / "train.csv").write_bytes("\r\n".join([header, *lines, ""]).encode())
    (tmp_path / "eval.csv").write_bytes(f"{header}\r\n1,5,f,x,14102100\r\n".encode())
    examples = run_example_gen(
        tmp_path / "examples", SCHEMA, tmp_path / "train.csv", str(tmp_path / "eval.csv"), method="files"
    )
    output = run_transform(tmp_path, SCHEMA, examples)
    ids = _query(output, [{**QUERY[0], "c": [value.encode()]} for value in odd])["sparse_features"]
    assert sorted(ids[:, 0]) == list(range(len(odd)))
    assert ids[0, 1] == 2  # of a vocabulary without a value: one line for show, one OOV bucket, then missing


def test_two_values_in_a_row_are_refused(output):
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than one value in a row"):
        _query(output, [{**QUERY[0], "c": [b"a", b"b"]}])


@given(st.datetimes(datetime.datetime(2000, 1, 1), datetime.datetime(2099, 12, 31)))
@settings(max_examples=50)
def test_time_parts_agree_with_the_calendar(moment):
    yymmddhh = tf.constant([int(moment.strftime("%y%m%d%H"))], tf.int64)
    unix = tf.constant([int(moment.replace(tzinfo=datetime.UTC).timestamp())], tf.int64)
    for time, value in ((AVAZU.time, yymmddhh), (TimeColumn("t", "unix_seconds", ()), unix)):
        assert int(time_part(value, time, "hour_of_day")[0]) == moment.hour
        assert int(time_part(value, time, "weekday")[0]) == moment.weekday()
