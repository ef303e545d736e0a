"""Whole models with the layers, trained."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature, MLETEmbedding, variable_role
from mlet_tf.optimizers import RowWiseAdagrad, SparseAdagrad, SparseSGD, split_optimizer

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
tensorflow_only = pytest.mark.skipif(not ON_TENSORFLOW, reason="needs TensorFlow")

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 12, (64, 3))
LABELS = RNG.integers(0, 2, (64, 1)).astype("float32")


def trained(optimizer, epochs=1, jit_compile=False, **multipliers):
    """Weights before and after training a model that has a layer of either kind."""
    keras.utils.set_random_seed(3)
    features = [EmbeddingFeature("a", 12), EmbeddingFeature("b", 30), EmbeddingFeature("direct", 12, 0)]
    inputs = keras.Input((3,), dtype="int32")
    fused = EmbeddingCollection(features, 4, 6, deduplicate=True, **multipliers)(inputs)
    single = MLETEmbedding(12, 4, 6, deduplicate=True, **multipliers)(inputs)
    flat = keras.layers.Flatten()(keras.layers.Concatenate()([fused, single]))
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(flat))
    before = model.get_weights()
    model.compile(optimizer, "binary_crossentropy", jit_compile=jit_compile)
    model.fit(IDS, LABELS, batch_size=32, epochs=epochs, shuffle=False, verbose=0)
    return model.weights, before, model.get_weights()


@tensorflow_only
def test_training_compiled_by_xla_gives_the_same_weights():
    def weights(jit_compile):
        optimizer = split_optimizer(tables=RowWiseAdagrad(0.1), dense=SparseAdagrad(0.1))
        return trained(optimizer, epochs=3, jit_compile=jit_compile)[1:]

    before, plain = weights(jit_compile=False)
    for a, b, old in zip(plain, weights(jit_compile=True)[1], before, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert np.abs(a - old).max() > 1e-3


def test_learning_rate_multipliers_scale_each_factors_step():
    def steps(**multipliers):
        optimizer = SparseSGD(0.5, gradient_accumulation_steps=2)  # Two batches, so one step.
        variables, before, after = trained(optimizer, **multipliers)
        return variables, [new - old for old, new in zip(before, after, strict=True)]

    variables, plain = steps()
    _, scaled = steps(table_learning_rate_multiplier=3.0, projection_learning_rate_multiplier=0.25)
    factor = {"table": 3.0, "projection": 0.25, "dense": 1.0}
    for variable, a, b in zip(variables, plain, scaled, strict=True):
        expected = 1.0 if variable.name.startswith("direct") else factor[variable_role(variable)]
        assert np.abs(a).max() > 1e-4
        np.testing.assert_allclose(b, expected * a, rtol=1e-3, atol=1e-6, err_msg=variable.path)


def trained_on_bags(bags, ragged=False):
    """Weights after training a model with multi-valued features on `bags`, in whatever form they are."""
    keras.utils.set_random_seed(3)
    features = [EmbeddingFeature("sum", 12, combiner="sum"), EmbeddingFeature("mean", 30, combiner="mean")]
    inputs = {f.name: keras.Input((None,), dtype="int64", ragged=ragged, name=f.name) for f in features}
    vectors = EmbeddingCollection(features, 4, 6)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(vectors)))
    model.compile(SparseAdagrad(0.1), "mse", jit_compile=False)
    before = model.get_weights()
    model.fit({"sum": bags, "mean": bags}, np.ones((len(LISTS), 1)), batch_size=4, shuffle=False, verbose=0)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before, model.get_weights(), strict=True))
    return model.get_weights()


LISTS = [[3, 1, 1], [], [11], [4, 5, 6, 7, 8], [0, 0], [2], [9, 3], [10]]


def test_padded_ids_are_the_form_of_ragged_ones_on_every_backend():
    """However long and on whichever side the padding is, the model that comes out is that of the lists."""
    pad = keras.utils.pad_sequences
    expected = trained_on_bags(pad(LISTS, value=-1, padding="post"))
    forms = [(pad(LISTS, value=-7, maxlen=9), False)]
    if ON_TENSORFLOW:
        import tensorflow as tf

        forms.append((tf.ragged.constant(LISTS, tf.int64), True))
    for bags, ragged in forms:
        for a, b in zip(trained_on_bags(bags, ragged), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@tensorflow_only
@pytest.mark.parametrize("name", ["MLETEmbedding", "EmbeddingCollection"])
def test_layer_built_inside_a_function_starts_once(name):
    import tensorflow as tf

    if name == "MLETEmbedding":
        layer, ids = MLETEmbedding(12, 4, 6), tf.constant([[3, 4]])
    else:
        layer, ids = EmbeddingCollection([EmbeddingFeature(x, 12) for x in "ab"], 4, 6), tf.constant([[3, 4]])
    call = tf.function(layer)
    before = call(ids)
    assert np.abs(before).max() > 0
    for table in layer.weights:
        table.assign(table.value * 2)
    np.testing.assert_allclose(call(ids), 4 * before, rtol=1e-5)


@tensorflow_only
def test_model_trained_on_two_replicas_equals_one_device_and_collapses(tmp_path):
    script = textwrap.dedent(
        """
        import keras, numpy as np, tensorflow as tf
        from mlet_tf import MLETEmbedding, collapse_model
        from mlet_tf.optimizers import RowWiseAdagrad, SparseAdagrad, split_optimizer

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        rng = np.random.default_rng(0)
        ids, labels = rng.integers(0, 12, (64, 2)), rng.integers(0, 2, (64, 1)).astype("float32")

        def train(strategy):
            keras.utils.set_random_seed(0)
            with strategy.scope():
                inputs = keras.Input((2,), dtype="int32")
                vectors = MLETEmbedding(12, 4, 6, deduplicate=True)(inputs)
                model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(vectors)))
                optimizer = split_optimizer(tables=RowWiseAdagrad(0.1), dense=SparseAdagrad(0.1))
                model.compile(optimizer, "mse", jit_compile=False)
            data = tf.data.Dataset.from_tensor_slices((ids, labels)).batch(16)
            model.fit(data, epochs=2, verbose=0)
            return model

        one = train(tf.distribute.get_strategy())
        two = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
        for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
        collapsed = collapse_model(two, inputs=ids)
        assert isinstance(collapsed.layers[1], keras.layers.Embedding)
        np.testing.assert_allclose(collapsed(ids), one(ids), rtol=1e-3, atol=1e-4)
        print("equal")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")
