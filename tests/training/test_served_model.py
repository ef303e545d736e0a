"""The model that is served, as it is written: both forms, and warm-up requests inside."""

from pathlib import Path

import keras
import pytest
import tensorflow as tf

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.export import KERAS_MODEL, SERVING_MODEL
from mlet_tf.serving.warmup import WARMUP_FILE
from mlet_tf.training.served_model import write_served_model

SCHEMA = ClickLogSchema(
    name="tiny",
    label="y",
    integers=("i",),
    categoricals=("c",),
    time=None,
    drop=(),
    columns=("y", "i", "c"),
    separator="\t",
    header=True,
    missing=("",),
)


def transform(columns):
    ids = tf.strings.to_hash_bucket_fast(tf.sparse.to_dense(columns["c"]), 10)
    return {"dense_features": tf.cast(tf.sparse.to_dense(columns["i"]), tf.float32), "sparse_features": ids}


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    dense = keras.Input([1], name="dense_features")
    sparse = keras.Input([1], dtype="int64", name="sparse_features")
    features = [dense, keras.layers.Flatten()(keras.layers.Embedding(10, 2)(sparse))]
    ctr = keras.layers.Dense(1, "sigmoid")(keras.layers.Concatenate()(features))
    return keras.Model({"dense_features": dense, "sparse_features": sparse}, ctr)


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("examples") / "rows.gz"
    with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
        for number in range(5):
            example = tf.train.Example()
            example.features.feature["i"].int64_list.value.append(number)
            example.features.feature["c"].bytes_list.value.append(b"cat%d" % number)
            writer.write(example.SerializeToString())
    return str(path)


@pytest.mark.parametrize(("asked", "written"), [(3, 3), (9, 5), (0, 0)])
def test_warm_up_requests_are_the_first_rows(model, examples, tmp_path, asked, written):
    """A run with `serving.warmup_rows: 0`, which the configuration allows, ended with an error at the collapse."""
    write_served_model(model, SCHEMA, transform, str(tmp_path), [examples], asked)
    served = Path(tmp_path, SERVING_MODEL)
    assert Path(tmp_path, KERAS_MODEL).exists() and (served / "saved_model.pb").exists()
    requests = list(tf.data.TFRecordDataset(str(served / WARMUP_FILE))) if written else []
    assert len(requests) == written
    assert (served / WARMUP_FILE).exists() == (written > 0)
    rows = [record.numpy() for record in tf.data.TFRecordDataset(examples, "GZIP")]
    assert all(row in request.numpy() for row, request in zip(rows, requests, strict=False))
