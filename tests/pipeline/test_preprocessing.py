"""The preprocessing graph against plain Python and against stock tensorflow-transform."""

import datetime
import math

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.datasets import AVAZU, ClickLogSchema, TimeColumn
from pipeline.preprocessing import preprocessing_fn, time_part
from pipeline.vocabulary import CountValues, rank

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
CONFIG = {
    "schema": SCHEMA.to_dict(),
    "min_count": 2,
    "max_size": 3,
    "num_oov_buckets": 2,
    "rare_below": 4,
    "frequency_slices": ["c"],
}
# a x5, b x4, d and c x3 (a tie), e x2, f x1
VALUES = list("aaaaabbbbcccdddeef")
ROWS = [
    {
        "click": [i % 2],
        "i": [i - 4] if i % 3 else [],
        "c": [value.encode()],
        "empty": [],
        "hour": [14102100 + i],
    }
    for i, value in enumerate(VALUES)
]
QUERY = [
    {"i": [-7], "c": [b"a"], "empty": [], "hour": [14102105]},
    {"i": [], "c": [b"d"], "empty": [b"x"], "hour": [14102105]},
    {"i": [0], "c": [b"e"], "empty": [], "hour": [14102105]},
    {"i": [3], "c": [], "empty": [], "hour": []},
]


def _transform(rows, query, preprocess, folder):
    spec = {name: tf.io.VarLenFeature(tf.int64) for name in ("click", "i", "hour")}
    spec |= {name: tf.io.VarLenFeature(tf.string) for name in ("c", "empty")}
    metadata = tft.DatasetMetadata.from_feature_spec(spec)
    with beam.Pipeline() as pipeline, tft_beam.Context(temp_dir=str(folder / "tmp")):
        data = pipeline | beam.Create(rows)
        transform_fn = (data, metadata) | tft_beam.AnalyzeDataset(preprocess)
        _ = transform_fn | tft_beam.WriteTransformFn(str(folder / "out"))
    output = tft.TFTransformOutput(str(folder / "out"))
    features = {}
    for name, feature in spec.items():
        if name == "click":
            continue
        dtype = feature.dtype.as_numpy_dtype
        values = [row[name] for row in query]
        features[name] = tf.RaggedTensor.from_row_lengths(
            np.array([v for row in values for v in row], dtype=dtype),
            [len(row) for row in values],
        ).to_sparse()
    return {key: np.asarray(value) for key, value in output.transform_raw_features(features).items()}


@pytest.fixture(scope="module")
def transformed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transform")
    return _transform(ROWS, QUERY, lambda inputs: preprocessing_fn(inputs, CONFIG), folder)


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


def test_ids_equal_stock_tft(tmp_path, transformed):
    def stock(inputs):
        dense = tf.sparse.to_dense(
            tf.SparseTensor(inputs["c"].indices, inputs["c"].values, [tf.shape(inputs["c"])[0], 1]), ""
        )
        return {
            "c": tft.compute_and_apply_vocabulary(
                tf.squeeze(dense, 1), top_k=3, frequency_threshold=2, num_oov_buckets=2
            )
        }

    expected = _transform(ROWS, QUERY, stock, tmp_path)["c"]
    np.testing.assert_array_equal(transformed["sparse_features"][:3, 0], expected[:3])


@given(st.datetimes(datetime.datetime(2000, 1, 1), datetime.datetime(2099, 12, 31)))
@settings(max_examples=50, deadline=None)
def test_time_parts_agree_with_the_calendar(moment):
    yymmddhh = tf.constant([int(moment.strftime("%y%m%d%H"))], tf.int64)
    unix = tf.constant([int(moment.replace(tzinfo=datetime.UTC).timestamp())], tf.int64)
    for time, value in ((AVAZU.time, yymmddhh), (TimeColumn("t", "unix_seconds", ()), unix)):
        assert int(time_part(value, time, "hour_of_day")[0]) == moment.hour
        assert int(time_part(value, time, "weekday")[0]) == moment.weekday()


@given(st.lists(st.lists(st.sampled_from([b"", b"a", b"b", b"cc", b"\xc3\xa9"]), max_size=20), max_size=6))
@settings(max_examples=50, deadline=None)
def test_counts_do_not_depend_on_how_rows_are_batched(batches):
    combine = CountValues(1)
    accumulators = [
        combine.add_input(combine.create_accumulator(), (np.array(batch, dtype=object),)) for batch in batches
    ]
    table = combine.extract_output(combine.merge_accumulators(accumulators))[0]
    values, counts = rank(table, min_count=1, max_size=None)
    flat = [value for batch in batches for value in batch if value]
    assert dict(zip(values, counts.tolist(), strict=True)) == {
        value: flat.count(value) for value in set(flat)
    }
    assert values == sorted(set(flat), key=lambda value: (flat.count(value), value), reverse=True)


def test_rank_of_nothing():
    assert rank(pa.table({"value": pa.array([b""]), "count": [3]}), 1, None)[0] == []
    assert rank(None, 1, None)[0] == []
