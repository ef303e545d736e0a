import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.collapse import collapse_model, collapse_report
from mlet_tf.errors import InputError
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature, MLETEmbedding

FEATURES = [EmbeddingFeature("site", 40), EmbeddingFeature("device", 4), EmbeddingFeature("app", 30)]


def layers_of(model):
    return model._flatten_layers()


def assert_collapsed(model, collapsed, inputs):
    """No factor is left, the outputs are the same and the trained model did not change."""
    expected = keras.ops.convert_to_numpy(model(inputs))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(collapsed(inputs)), expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(layer, MLETEmbedding) for layer in layers_of(collapsed))
    assert all("projection" not in v.name for v in collapsed.weights)
    assert sum(isinstance(layer, MLETEmbedding | EmbeddingCollection) for layer in layers_of(model))
    shared = {id(v) for v in model.weights} & {id(v) for v in collapsed.weights}
    assert not shared


def functional():
    ids = keras.Input((3,), dtype="int32")
    more = keras.Input((2,), dtype="int64")
    dense = keras.Input((4,))
    shared = MLETEmbedding(50, 4, 8, name="shared")
    inner_inputs = keras.Input((2,), dtype="int64")
    inner = keras.Model(inner_inputs, MLETEmbedding(40, 2, (5, 6), name="inner")(inner_inputs), name="nested")
    flat = keras.layers.Flatten()
    parts = [
        flat(shared(ids)),
        flat(shared(more)),
        flat(inner(more)),
        keras.layers.BatchNormalization()(dense),
    ]
    x = keras.layers.Concatenate()([*parts, keras.layers.Lambda(lambda t: t * 2)(dense)])
    x = keras.layers.TimeDistributed(keras.layers.Dense(2))(keras.layers.Reshape((-1, 1))(x))
    return keras.Model([ids, more, dense], keras.layers.Dense(1)(keras.layers.Flatten()(x)))


def functional_inputs(rows=8):
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(rows, 4)).astype("float32")
    return [rng.integers(0, 50, (rows, 3)), rng.integers(0, 40, (rows, 2)), dense]


class Subclassed(keras.Model):
    """Makes its layers itself, in an attribute, a list and a dict."""

    def __init__(self, width=3, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.first = MLETEmbedding(20, width, 6)
        self.more = [MLETEmbedding(20, width, 7), keras.layers.Dense(width)]
        self.named = {"all": EmbeddingCollection(FEATURES[:2], width, 10, direct_threshold=0)}

    def get_config(self):
        return {"name": self.name, "width": self.width}

    def call(self, ids):
        x = self.more[1](self.first(ids)[:, 0] + self.more[0](ids)[:, 1])
        return x + keras.ops.sum(self.named["all"](ids), 1)


def test_functional_model_with_shared_and_nested_layers(tmp_path):
    model = functional()
    model.compile("sgd", "mse", metrics=["mae"])
    model.fit(functional_inputs(64), np.ones((64, 1)), verbose=0)
    collapsed = collapse_model(model)
    assert_collapsed(model, collapsed, functional_inputs())
    kinds = [type(layer) for layer in layers_of(collapsed)]
    assert kinds.count(keras.layers.Embedding) == 2
    assert [layer.name for layer in collapsed.layers] == [layer.name for layer in model.layers]
    collapsed.get_layer("shared").embeddings.assign(np.zeros((50, 4)))
    assert np.abs(model.get_layer("shared").effective_table()).max() > 0


def test_collapsed_file_needs_nothing_of_this_package(tmp_path):
    ids = keras.Input((3,), dtype="int32")
    model = keras.Model(ids, keras.layers.Dense(2)(MLETEmbedding(20, 4, 8)(ids)))
    collapsed = collapse_model(model)
    collapsed.save(tmp_path / "served.keras")
    assert "mlet_tf" not in collapsed.to_json()
    loaded = keras.models.load_model(tmp_path / "served.keras")
    x = np.arange(15).reshape(5, 3)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), collapsed.predict(x, verbose=0), atol=1e-6)
    # Neither of both models has taken the other's arrays with it.
    np.testing.assert_allclose(model.predict(x, verbose=0), collapsed.predict(x, verbose=0), atol=1e-5)


@pytest.mark.parametrize("with_input", [True, False])
def test_sequential_model(with_input):
    first = [keras.Input((5,), dtype="int32")] if with_input else []
    model = keras.Sequential([*first, MLETEmbedding(20, 4, (6, 5), mask_zero=True), keras.layers.LSTM(3)])
    ids = np.random.default_rng(0).integers(0, 4, (6, 5))
    model(ids)
    collapsed = collapse_model(model, None if with_input else ids)
    assert_collapsed(model, collapsed, ids)
    assert collapsed.layers[0].mask_zero


def test_subclassed_model():
    model = Subclassed(width=4, name="ranker")
    ids = np.random.default_rng(0).integers(0, 4, (6, 2))
    model(ids)
    collapsed = collapse_model(model, ids)
    assert type(collapsed) is Subclassed and collapsed.width == 4
    assert_collapsed(model, collapsed, ids)


@settings(max_examples=2 if keras.backend.backend() == "jax" else 6)
@given(
    rows=st.integers(1, 30),
    hidden=st.integers(4, 9),
    width=st.integers(1, 4),
    block_rows=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_report_measures_the_collapse(rows, hidden, width, block_rows, seed):
    keras.utils.set_random_seed(seed)
    features = [EmbeddingFeature("a", rows, table="t"), EmbeddingFeature("b", rows, table="t")]
    collection = EmbeddingCollection(features, width, hidden, direct_threshold=0, name="all")
    ids = keras.Input((2,), dtype="int64")
    model = keras.Model(ids, collection(ids) + MLETEmbedding(rows, width, (hidden, 5), name="one")(ids))
    report = {record["name"]: record for record in collapse_report(model, block_rows=block_rows)}
    assert set(report) == {"all/a", "all/b", "one"}
    assert report["one"]["bytes_before"] == 4 * (rows * hidden + hidden * 5 + 5 * width)
    assert report["all/a"]["bytes_before"] == 4 * (rows * hidden + hidden * width)
    assert report["all/b"]["bytes_before"] == 4 * hidden * width
    effective = model.get_layer("one").effective_table()
    for record in report.values():
        assert (record["rows"], record["hidden_dim"], record["output_dim"]) == (rows, hidden, width)
        assert record["bytes_after"] == 4 * rows * width
        assert 0 <= record["max_abs_difference"] < 1e-5
        assert 0 < record["effective_rank"] <= min(rows, width) + 1e-6
        assert len(record["singular_values"]) == min(rows, width)
    exact = np.linalg.svd(effective.astype("float64"), compute_uv=False)
    np.testing.assert_allclose(report["one"]["singular_values"], exact, atol=1e-6 * (1 + exact[0]))


def test_weights_that_are_not_finite_are_refused_by_name():
    model = Subclassed()
    model(np.zeros((1, 2), "int64"))
    table = model.named["all"].factorization("device").table
    values = keras.ops.convert_to_numpy(table).copy()
    values[-1] = np.nan
    table.assign(values)
    for function in (collapse_model, collapse_report):
        with pytest.raises(InputError, match=r"embedding_collection.*/device.*NaN or infinity"):
            function(model)


def test_growing_tables_are_warned_of():
    model = keras.Sequential([keras.Input((2,)), MLETEmbedding(9, 8, 4, name="items")])
    with pytest.warns(UserWarning, match=r"items grows.*4.*8"):
        collapse_model(model)


def test_differing_outputs_are_refused():
    model = keras.Sequential([keras.Input((2,)), MLETEmbedding(9, 4, 8)])
    with pytest.raises(ValueError, match=r"at most -1"):
        collapse_model(model, tolerance=-1)


def test_models_that_cannot_be_made_again_are_refused():
    class Opaque(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def call(self, ids):
            return self.layer(ids)

        def get_config(self):
            raise NotImplementedError

    model = Opaque(MLETEmbedding(9, 4, 8))
    with pytest.raises(ValueError, match=r"should be built"):
        collapse_model(model)
    model(np.zeros((1, 2), "int64"))
    with pytest.raises(ValueError, match=r"`get_config\(\)`.*Opaque"):
        collapse_model(model)


def test_arguments_missing_from_the_configuration_are_reported():
    class Forgetful(Subclassed):
        def get_config(self):
            return {}

    model = Forgetful(width=4)
    model(np.zeros((1, 2), "int64"))
    with pytest.raises(ValueError, match=r"the same layers again from its `get_config\(\)`"):
        collapse_model(model)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="IntegerLookup is built on TensorFlow")
def test_vocabularies_and_running_statistics_come_along():
    lookup = keras.layers.IntegerLookup(num_oov_indices=1)
    lookup.adapt(np.array([7, 7, 9, 11]))
    normalization = keras.layers.Normalization()
    normalization.adapt(np.array([[1.0], [3.0]]))
    ids = keras.Input((1,), dtype="int64")
    dense = keras.Input((1,))
    embedded = keras.layers.Flatten()(MLETEmbedding(4, 3, 5)(lookup(ids)))
    model = keras.Model([ids, dense], keras.layers.Concatenate()([embedded, normalization(dense)]))
    inputs = [np.array([[7], [9], [5]]), np.array([[1.0], [2.0], [9.0]], "float32")]
    assert_collapsed(model, collapse_model(model, inputs), inputs)


def test_mixed_precision_model():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = keras.Sequential(
            [
                keras.Input((2,), dtype="int32"),
                MLETEmbedding(30, 4, 8),
                keras.layers.Dense(3, dtype="float32"),  # As Keras advises for the last layer.
            ]
        )
    finally:
        keras.config.set_dtype_policy("float32")
    collapsed = collapse_model(model)
    assert collapsed.layers[0].compute_dtype == "bfloat16"
    assert collapsed.layers[0].embeddings.dtype == "float32"
    table = keras.ops.convert_to_numpy(collapsed.layers[0].embeddings)
    np.testing.assert_allclose(table, model.layers[0].effective_table(), atol=1e-7)


def scaled_by(factor):
    def scale(t):
        return keras.ops.multiply(t, factor)

    return scale


def relu(x):  # Not that of Keras.
    return keras.ops.tanh(x)


def double_of(base):
    class Dense(base):
        def call(self, x):
            return super().call(x) * 2

    return Dense


def test_functions_and_classes_come_back_as_they_are():
    """Lambdas with globals and closures, and names which are given twice."""
    keras.utils.set_random_seed(0)  # The factors make differences of rounding large for some weights.
    ids = keras.Input((3,), dtype="int32")
    tail = keras.Sequential([keras.layers.Lambda(scaled_by(5), name="twice"), keras.layers.Dense(2)])
    own = double_of(keras.layers.Dense)
    total = keras.layers.Lambda(lambda t: keras.ops.sum(t, axis=1))
    x = keras.layers.Lambda(scaled_by(2), name="twice")(total(MLETEmbedding(20, 4, 8)(ids)))
    x = keras.layers.Dense(3, activation=relu)(keras.layers.Lambda(scaled_by(3))(x))
    x = keras.layers.Dense(3, activation=lambda t: keras.ops.sin(2 * t))(double_of(own)(3)(own(3)(x)))
    model = keras.Model(ids, keras.layers.Dense(2, activation="relu")(tail(x)))
    config = str(model.get_config())
    assert_collapsed(model, collapse_model(model), np.arange(18).reshape(6, 3))
    assert str(model.get_config()) == config
    assert total.function.__name__ == "<lambda>" and keras.saving.get_registered_name(relu) == "relu"


class Sum(keras.layers.Layer):
    """Sum of functions, which its configuration holds in a list and in a dict."""

    def __init__(self, functions, named, **kwargs):
        super().__init__(**kwargs)
        self.functions, self.named = functions, named

    def call(self, x):
        return sum(function(x) for function in [*self.functions, *self.named.values()])

    def get_config(self):
        return {**super().get_config(), "functions": self.functions, "named": self.named}

    @classmethod
    def from_config(cls, config):
        config["functions"] = [keras.saving.deserialize_keras_object(f) for f in config["functions"]]
        config["named"] = {n: keras.saving.deserialize_keras_object(f) for n, f in config["named"].items()}
        return cls(**config)


def test_functions_in_lists_and_dicts_come_back_as_they_are():
    ids = keras.Input((3,), dtype="int32")
    total = Sum([relu, scaled_by(2), scaled_by(5)], {"odd": lambda t: t - relu(t), "relu": keras.ops.relu})
    model = keras.Model(ids, total(MLETEmbedding(20, 4, 8)(ids)))
    assert_collapsed(model, collapse_model(model), np.arange(18).reshape(6, 3))


@pytest.mark.parametrize(
    "change",
    [
        lambda ids, x: x,
        lambda ids, x: keras.ops.log(keras.ops.cast(ids, "float32") - 1)[:, :, None] + x,
        lambda ids, x: keras.ops.where((ids > 2)[:, :, None], x, -np.inf),
    ],
    ids=["id less one", "NaN", "masked"],
)
def test_made_up_inputs_do_not_refuse_a_model(change):
    ids = keras.Input((3,), dtype="int32")
    model = keras.Model(ids, change(ids, MLETEmbedding(20, 4, 8)(ids - 1)))
    collapsed = collapse_model(model)
    assert_collapsed(model, collapsed, np.arange(2, 17).reshape(5, 3))


def test_given_inputs_are_not_passed_over():
    ids = keras.Input((2,), dtype="int32")
    model = keras.Model(ids, keras.ops.sqrt(keras.ops.min(MLETEmbedding(20, 4, 8)(ids)) - 100))
    with pytest.raises(InputError, match="expected numbers"):
        collapse_model(model, np.ones((2, 2), "int32"))


def test_models_that_shapes_do_not_build():
    class Strict(Subclassed):
        """Refuses floats, which Keras takes to build a model from shapes."""

        def call(self, ids):
            if "int" not in keras.backend.standardize_dtype(ids.dtype):
                raise TypeError
            return super().call(ids)

    class Pair(Subclassed):
        def call(self, ids, scale):
            return super().call(ids) * scale

    ids = np.random.default_rng(0).integers(0, 4, (6, 2))
    strict, pair = Strict(name="strict"), Pair(name="pair")
    strict(ids)
    scale = np.full((6, 1), 3.0, "float32")
    pair(ids, scale)
    for model in (strict, pair):
        with pytest.raises(ValueError, match="should be built from its configuration"):
            collapse_model(model)
    assert_collapsed(strict, collapse_model(strict, ids), ids)
    for inputs in ((ids, scale), {"scale": scale, "ids": ids}):
        collapsed = collapse_model(pair, inputs)
        assert not any(isinstance(layer, MLETEmbedding) for layer in layers_of(collapsed))
        expected = keras.ops.convert_to_numpy(pair(ids, scale))
        np.testing.assert_allclose(keras.ops.convert_to_numpy(collapsed(ids, scale)), expected, atol=1e-5)


def test_wrappers():
    ids = keras.Input((3, 5), dtype="int32")
    x = keras.layers.TimeDistributed(MLETEmbedding(20, 4, 8))(ids)
    both = keras.layers.Bidirectional(keras.layers.LSTM(2))
    model = keras.Model(ids, both(keras.layers.Reshape((15, 4))(x)))
    collapsed = collapse_model(model)
    assert_collapsed(model, collapsed, np.random.default_rng(0).integers(0, 20, (2, 3, 5)))
    assert isinstance(collapsed.layers[1].layer, keras.layers.Embedding)


def test_collapsed_model_is_cloned_and_exported(tmp_path):
    collapsed = collapse_model(keras.Sequential([keras.Input((2,), dtype="int32"), MLETEmbedding(20, 4, 8)]))
    ids = np.arange(6).reshape(3, 2).astype("int32")
    expected = keras.ops.convert_to_numpy(collapsed(ids))
    clone = keras.models.clone_model(collapsed)
    clone.set_weights(collapsed.get_weights())
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(clone(ids)), expected)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        collapsed.export(tmp_path / "served", verbose=False)
        served = tf.saved_model.load(str(tmp_path / "served"))
        np.testing.assert_array_equal(served.serve(ids), expected)
