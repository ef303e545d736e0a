"""Compression of Keras models of all sorts: budgets are kept, predictions stay, mistakes are named."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import mlet_tf
from mlet_tf import EmbeddingCollection, EmbeddingFeature, MLETEmbedding, compress_model
from mlet_tf.compression.search import predict
from mlet_tf.errors import InputError
from mlet_tf.metrics import auc

USERS, ITEMS, LENGTH = 150, 400, 3
ROWS = 12_000


def draw_rows(rows, seed):
    """Users, items and a padded history; the label comes from dot products of rank 2."""
    truth = np.random.default_rng(5)
    user, item = truth.normal(size=(USERS, 2)), truth.normal(size=(ITEMS, 2))
    generator = np.random.default_rng(seed)
    users = (USERS * generator.random(rows) ** 2).astype("int32")
    items = (ITEMS * generator.random(rows) ** 3).astype("int32")
    history = np.where(
        generator.random((rows, LENGTH)) < 0.7, generator.integers(1, ITEMS, (rows, LENGTH)), 0
    ).astype("int32")
    history[:, 0] = np.maximum(history[:, 0], 1)  # The mean of nothing is not a number.
    logit = 3 * (user[users] * item[items]).sum(axis=1) + item[history].mean(axis=1)[:, 0]
    label = (generator.random(rows) < 1 / (1 + np.exp(-logit))).astype("float32")
    return {"user": users, "item": items, "history": history}, label


def functional_model():
    """Tables of different widths, one factorised, one shared by a single id and a padded list."""
    user = keras.Input((), dtype="int32", name="user")
    item = keras.Input((), dtype="int32", name="item")
    history = keras.Input((LENGTH,), dtype="int32", name="history")
    table = keras.layers.Embedding(ITEMS, 8, mask_zero=True, name="items")
    wide = MLETEmbedding(USERS, 8, hidden_dim=16, name="users")(user)
    narrow = keras.layers.Embedding(USERS, 4, name="bias")(user)
    past = keras.layers.GlobalAveragePooling1D()(table(history))
    one = table(item)
    dots = keras.layers.Dot(1)([wide, one])
    joined = keras.layers.Concatenate()([dots, narrow, past, wide, one])
    hidden = keras.layers.Dense(16, "relu")(joined)
    return keras.Model([user, item, history], keras.layers.Dense(1, "sigmoid")(hidden), name="functional")


class Subclassed(keras.Model):
    """A subclassed model on a collection of two tables, one of them shared."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        features = [
            EmbeddingFeature("user", USERS),
            EmbeddingFeature("item", ITEMS, table="items", projection="items"),
            EmbeddingFeature("last", ITEMS, table="items", projection="items"),
        ]
        self.embeddings = EmbeddingCollection(features, 8, hidden_dim=16, name="embeddings")
        self.top = keras.Sequential([keras.layers.Dense(16, "relu"), keras.layers.Dense(1, "sigmoid")])

    def call(self, inputs):
        ids = {"user": inputs["user"], "item": inputs["item"], "last": inputs["history"][:, 0]}
        vectors = self.embeddings(ids)
        dots = keras.ops.sum(vectors[:, :1] * vectors[:, 1:], axis=-1)
        return self.top(keras.ops.concatenate([keras.ops.reshape(vectors, (-1, 24)), dots], axis=1))


class Positions(keras.layers.Layer):
    """A table that is not read by the ids of a row."""

    def __init__(self):
        super().__init__()
        self.table = keras.layers.Embedding(LENGTH, 4, name="positions")
        self.table.build()

    def call(self, inputs):
        return self.table(keras.ops.arange(LENGTH)) * keras.ops.cast(inputs, "float32")[..., None]


def trained(model, data):
    keras.utils.set_random_seed(0)
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy")
    model.fit(*data, batch_size=256, epochs=4, verbose=0)
    return model


@pytest.fixture(scope="module")
def data():
    return draw_rows(ROWS, 0), draw_rows(2000, 1), draw_rows(2000, 2)


@pytest.fixture(scope="module", params=["functional", "subclassed"])
def model(request, data):
    keras.utils.set_random_seed(0)
    return trained(functional_model() if request.param == "functional" else Subclassed(), data[0])


def embedding_bytes(model):
    """Bytes of the variables of all served tables."""
    layers = [x for x in model._flatten_layers() if type(x).__name__ == "BandedTable"]
    variables = [variable for layer in layers for variable in layer.variables]
    return sum(int(np.prod(v.shape)) * tf.as_dtype(v.dtype).size for v in variables)


def test_a_ratio_is_kept_in_the_variables_of_the_model_and_after_saving(model, data, tmp_path):
    train, validation, test = data
    found = compress_model(model, train, {"ratio": 4}, validation_data=validation)
    report = found.report
    after = report["bytes_after"]["rows"] + report["bytes_after"]["addresses"]
    assert after == embedding_bytes(found.model) <= report["bytes_before"]["rows"] / 4
    assert after == sum(table["bytes_after"] for table in report["tables"])
    before, now = (predict(m, test[0]) for m in (model, found.model))
    assert auc(test[1], before) > 0.7
    assert auc(test[1], now) > auc(test[1], before) - 0.03
    block = {name: tf.constant(values[:300]) for name, values in test[0].items()}
    signature = {name: tf.TensorSpec([None, *x.shape[1:]], x.dtype, name) for name, x in block.items()}
    module = tf.Module()
    module.model = found.model
    module.ctr = tf.function(lambda inputs: found.model(inputs, training=False), [signature])
    tf.saved_model.save(module, str(tmp_path / "saved"))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(loaded.ctr(block).numpy().ravel(), now[:300], atol=1e-6)
    if isinstance(model, Subclassed):
        return  # Keras makes its layers anew when it loads a file.
    found.model.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(predict(again, test[0]), now, atol=1e-6)


def test_a_budget_of_auc_is_kept_on_the_rows_that_choose(model, data):
    train, validation, _ = data
    lines = []
    found = compress_model(
        model, train, {"max_auc_drop": 0.01}, validation_data=validation, note=lines.append
    )
    points = found.report["points"]
    (chosen,) = (point for point in points if point["chosen"])
    assert chosen["auc_drop"] + chosen["auc_drop_error"] <= 0.01 and chosen["ratio"] > 2
    label = validation[1]
    assert found.report["choosing_rows"] == len(label) / 2, "others say what rare ids have learned by heart"
    assert auc(label, predict(found.model, validation[0])) == pytest.approx(chosen["auc"], abs=0.03)
    assert points[0]["ratio"] == 1 and points[0]["auc_drop"] == 0
    sizes = [point["bytes"] for point in points]
    assert sizes == sorted(sizes, reverse=True)
    assert all(p["within_budget"] for p in points if p["bytes"] >= chosen["bytes"])
    assert sum("times smaller" in line for line in lines) == len(points) - 1


def test_no_drop_at_all_may_leave_the_tables_as_they_are(model, data):
    train, validation, _ = data
    found = compress_model(model, train, {"bytes": 10**9}, validation_data=validation)
    assert [p["ratio"] for p in found.report["points"]] == [1.0]
    np.testing.assert_allclose(predict(found.model, validation[0]), predict(model, validation[0]), atol=1e-5)


@pytest.mark.parametrize(
    ("methods", "stores", "addresses", "narrow"),
    [
        (["columns"], {"float32"}, {"identity"}, True),
        (["bits"], {"float32", "columns"}, {"identity"}, False),
        (["rows"], {"float32"}, {"identity", "bitmap", "hash"}, False),
    ],
)
def test_each_method_alone_saves_only_what_it_may(model, data, methods, stores, addresses, narrow):
    train, validation, _ = data
    found = compress_model(model, train, {"ratio": 2}, validation_data=validation, methods=methods)
    bands = [(table, band) for table in found.report["tables"] for band in table["bands"]]
    assert {band["store"] for _, band in bands if band["columns"]} <= stores
    assert {band["address"] for _, band in bands} <= addresses
    widths = {band["columns"] for _, band in bands}
    assert narrow == bool(widths - {0, 4, 8})


def test_rows_to_choose_on_are_not_needed_for_a_number_of_bytes(model, data):
    found = compress_model(model, data[0], {"bytes": 6_000})
    assert found.report["auc_after"] is None and found.report["choosing_rows"] == 0
    assert embedding_bytes(found.model) <= 6_000


def test_datasets_are_rows_too(model, data):
    train, validation, _ = data
    batches = tf.data.Dataset.from_tensor_slices(train).batch(500)
    one, other = (
        compress_model(model, rows, {"ratio": 6}, validation_data=validation) for rows in (train, batches)
    )
    assert one.report == other.report


@pytest.mark.parametrize(
    ("budget", "arguments", "text"),
    [
        ({"max_auc_drop": 0.01}, {"validation_data": None}, "expected rows to measure AUC on"),
        ({"bytes": 10}, {}, r"expected at least \d+ bytes of tables.*Received: 10 bytes"),
        ({"bytes": 0}, {}, "bytes: expected above 0"),
        ({"ratio": -2}, {}, "ratio: expected a finite number"),
        ({"bytes": 100, "ratio": 2}, {}, "exactly one"),
        ({}, {}, "exactly one"),
        ({"size": 3}, {}, "expected one of bytes, ratio, max_auc_drop. Received: size"),
        ({"ratio": 2}, {"methods": ["bit"]}, "expected some of columns, bits, rows. Received: bit"),
        ({"ratio": 2}, {"methods": []}, "Received: none"),
        ({"ratio": 2}, {"data": 7}, r"`data`: expected \(inputs, label\)"),
        ({"ratio": 2}, {"data": ({"user": np.zeros(3)}, np.zeros(2))}, "one label for each"),
        ({"ratio": 2}, {"data": ({"user": np.zeros(2)}, np.array([0, 5]))}, "labels of 0 and 1. Received"),
        (
            {"ratio": 2},
            {"data": ({"user": np.zeros(2)}, ["no", "yes"])},
            r"0 and 1. Received: \['no', 'yes'\]",
        ),
        (
            {"ratio": 2},
            {"data": ({"user": np.zeros(2), "item": 3}, np.zeros(2))},
            "inputs of 2, no rows and 2",
        ),
        (
            {"ratio": 2},
            {"validation_data": ({"user": np.zeros(1)}, np.ones(1))},
            "two without, at least. Received: 1 with",
        ),
    ],
)
def test_mistakes_are_one_clear_line(model, data, budget, arguments, text):
    train, validation, _ = data
    given = {"data": train, "validation_data": validation, **arguments}
    with pytest.raises(InputError, match=text) as error:
        compress_model(model, given.pop("data"), budget, **given)
    assert "\n" not in str(error.value)


def test_labels_of_one_kind_cannot_choose(model, data):
    train, (inputs, label), _ = data
    with pytest.raises(
        InputError,
        match=r"two with a click and two without, at least\. Received: 0 with a click, 1000 without",
    ):
        compress_model(model, train, {"max_auc_drop": 0.1}, validation_data=(inputs, np.zeros_like(label)))


def test_negative_ids_are_named(data):
    """Keras counts them from the end of a table, TensorFlow Serving does not."""
    inputs, label = data[0]
    table = keras.layers.Embedding(USERS, 4, name="users")
    made = keras.Sequential([table, keras.layers.Dense(1, "sigmoid")])
    made(inputs["user"][:2])
    with pytest.raises(InputError, match=r"Table 'users': expected ids from 0 to 149\. Received: -1"):
        compress_model(made, (inputs["user"] - 1, label), {"ratio": 2})


@pytest.mark.parametrize("kind", ["single", "collection"])
def test_ids_out_of_range_read_the_last_row_where_they_did(data, kind):
    inputs, label = data[0]
    ids = keras.Input((1,), dtype="int32")
    if kind == "single":
        table = MLETEmbedding(USERS, 4, hidden_dim=8, oov="last")
    else:
        table = EmbeddingCollection([EmbeddingFeature("user", USERS)], 4, oov="last")
    made = keras.Model(ids, keras.layers.Dense(1, "sigmoid")(keras.layers.Flatten()(table(ids))))
    x = inputs["user"][:, None].copy()
    x[:2] = [[USERS], [-1]]
    found = compress_model(made, (x, label), {"ratio": 2})
    ctr = predict(found.model, np.array([[USERS], [-1], [USERS - 1]]))
    assert ctr[0] == ctr[1] == ctr[2]
    again = type(found.model).from_config(found.model.get_config())
    assert np.isfinite(predict(again, np.array([[USERS]]))).all()


@pytest.mark.parametrize(
    "kind",
    ["logits", "two classes", "by name", "positions", "no weights", "bags", "no table", "compressed"],
)
def test_models_that_cannot_be_compressed_are_refused_by_name(data, kind, model):
    inputs, label = data[0]
    x = inputs["user"]
    table = keras.layers.Embedding(USERS, 4, name="users")
    if kind == "logits":
        made, text = (
            keras.Sequential([table, keras.layers.Dense(1, bias_initializer="ones")]),
            "need a sigmoid",
        )
    elif kind in ("two classes", "by name"):
        source = keras.Input((), dtype="int32")
        output = keras.layers.Dense(1 + (kind == "two classes"), "sigmoid")(table(source))
        made = keras.Model(source, {"ctr": output} if kind == "by name" else output)
        text = r"one click probability a row, \[B\] or \[B, 1\]"
    elif kind == "positions":
        source = keras.Input((LENGTH,), dtype="int32")
        output = keras.layers.Dense(1, "sigmoid")(keras.layers.Flatten()(Positions()(source)))
        made, text = keras.Model(source, output), "Layer 'positions': expected a lookup of ids of each row"
        x = inputs["history"]
    elif kind == "no weights":
        made, text = keras.Sequential([table, keras.layers.Dense(1, "sigmoid")]), "expected a trained model"
    elif kind == "no table":
        made, text = (
            keras.Sequential([keras.layers.Rescaling(0.01), keras.layers.Dense(1, "sigmoid")]),
            "an embedding table",
        )
        x = x[:, None].astype("float32")
    elif kind == "compressed":
        made = compress_model(model, data[0], {"ratio": 2}).model
        x, text = inputs, "expected trained tables"
    else:
        features = [EmbeddingFeature("user", USERS, combiner="mean")]
        source = keras.Input((LENGTH,), dtype="int32", name="user")
        vectors = EmbeddingCollection(features, 4, name="pooled")({"user": source})
        output = keras.layers.Dense(1, "sigmoid")(keras.layers.Flatten()(vectors))
        made, text = keras.Model({"user": source}, output), "without a combiner"
        x = {"user": inputs["history"] % USERS}
    made.compile("adam", "binary_crossentropy")
    if kind != "no weights":
        made(keras.tree.map_structure(lambda a: a[:2], x))
    with pytest.raises(InputError, match=text):
        compress_model(made, (x, label), {"ratio": 2})


def test_it_is_part_of_the_package():
    assert mlet_tf.compress_model is compress_model
    assert [f.name for f in dataclasses.fields(mlet_tf.compression.Compression)] == ["model", "report"]
