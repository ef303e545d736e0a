"""Whatever the columns of a log are called, their own names reach what TensorFlow Serving is asked with."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from tests_support import make_statistics, run_example_gen, run_transform

from mlet_tf.datasets import ClickLogSchema, load_schema
from mlet_tf.datasets.synthetic import write_log
from mlet_tf.export import export_model, raw_arguments
from mlet_tf.features.transform_graph import TransformGraph, table_rows
from mlet_tf.features.vocabulary import vocabulary_file
from mlet_tf.serving.check import check
from mlet_tf.serving.rows import Rows

INTEGERS = ["user id", "prix_€", "1", "self"]
CATEGORIES = [
    "user.city",
    "user_city",
    "shop:id",
    "a/b",
    "a b",
    "City",
    "city",
    "class",
    "é",
    "..",
    "x" * 128,
]
# Names of what the package itself feeds models with.
OURS = ["label", "dense_features", "sparse_features", "examples", "inputs", "ctr", "column_0"]


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    path = tmp_path_factory.mktemp("names") / "shop.yaml"
    keys = {"name": "shop", "label": "a 'click'?", "integers": INTEGERS, "categoricals": CATEGORIES + OURS}
    keys |= {"separator": ",", "header": True, "time": {"name": "at time", "format": "iso8601"}}
    path.write_text(json.dumps(keys))
    return load_schema(str(path))


@pytest.fixture(scope="module")
def exported(schema, tmp_path_factory):
    """Examples and an exported model whose CTR depends on every column."""
    folder = tmp_path_factory.mktemp("exported")
    write_log(folder / "log.csv", schema, 400, vocabulary=20, rank=1)
    examples = run_example_gen(folder / "examples", schema, folder / "log.csv")
    make_statistics(folder, schema, examples)
    run_transform(folder, schema, examples, frequency_slices=["City"])
    graph = folder / "graph"
    sizes = table_rows(graph, schema, num_oov_buckets=1)
    assert list(sizes) == [*CATEGORIES, *OURS, "hour_of_day", "weekday"]

    keras.utils.set_random_seed(1)
    dense = keras.Input([2 * len(INTEGERS)], name="dense_features")
    sparse = keras.Input([len(sizes)], dtype="int64", name="sparse_features")
    scaled = keras.layers.Rescaling(0.1)(sparse)
    ctr = keras.layers.Dense(1, "sigmoid")(keras.layers.Concatenate()([dense, scaled]))
    model = keras.Model({"dense_features": dense, "sparse_features": sparse}, ctr)
    export_model(model, schema, TransformGraph(graph), folder / "model")
    return folder / "model", sorted(str(path) for path in (folder / "examples" / "Split-eval").iterdir())


def test_all_signatures_of_the_exported_model_agree(exported, schema):
    model, files = exported
    assert check(str(model), files, schema) > 0


def test_a_server_is_asked_with_the_names_of_the_columns(exported, schema):
    """As TensorFlow Serving does: by the signatures in the file, not by Python's functions."""
    rows = [
        {
            "user id": "3",
            "user.city": "85ebca77",
            "a/b": "x",
            "prix_€": "260.0",
            "at time": "2014-10-21T03:00:00+02:00",
        },
        {"1": "", "City": "5.0", "city": "", "class": "c", "at time": "2014-10-21 01:00"},
    ]
    texts = {name: [row.get(name, "") for row in rows] for name in schema.raw_features}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(exported[0]))
        signature = loaded.signature_def["predict_raw"]
        assert set(signature.inputs) == set(schema.raw_features)
        feed = {signature.inputs[name].name: column for name, column in texts.items()}
        raw = session.run(signature.outputs["ctr"].name, feed)
    serving = tf.saved_model.load(str(exported[0])).signatures["serving_default"]
    expected = serving(examples=tf.constant(Rows(rows, schema).examples))["ctr"].numpy()
    np.testing.assert_allclose(raw, expected, rtol=1e-6)
    assert expected[0] != expected[1]


def test_python_names_arguments_only_where_it_must():
    def arguments(*names):
        return list(
            raw_arguments(
                ClickLogSchema.from_dict({"name": "s", "label": "y", "categoricals": [*names]})
            ).values()
        )

    assert arguments("I1", "C1", "user_id") == ["I1", "C1", "user_id"]
    for names in (
        ["City", "city"],
        ["class", "b"],
        ["self", "b"],
        ["a b", "b"],
        ["_a", "b"],
        ["column_1", "a.b"],
    ):
        assert arguments(*names) == ["column_0", "column_1"]


def test_each_feature_has_a_vocabulary_file_of_its_own():
    names = [*INTEGERS, *CATEGORIES, *OURS, "a_b", "a-b", "a:b", "x" * 127, "*", "?"]
    files = [vocabulary_file(name) for name in names]
    assert len(set(files)) == len(names)
    assert all("/" not in file and file.isascii() and len(file) < 150 for file in files)
    assert vocabulary_file("C1") == "vocabulary_C1.txt"
