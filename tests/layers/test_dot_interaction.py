import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.layers import DotInteraction, MLETEmbedding

SLOW_TO_COMPILE = keras.backend.backend() == "jax"  # It compiles every operation for every shape.
sizes = st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(1, 5))


def explicit(x, self_interaction):
    rows, columns = np.tril_indices(x.shape[1], 0 if self_interaction else -1)
    return np.stack([(x[:, i] * x[:, j]).sum(-1) for i, j in zip(rows, columns, strict=True)], 1)


@settings(max_examples=4 if SLOW_TO_COMPILE else 20)
@given(shape=sizes, self_interaction=st.booleans(), seed=st.integers(0, 99))
def test_outputs_are_all_pairs(to_numpy, shape, self_interaction, seed):
    x = np.random.default_rng(seed).normal(size=shape).astype("float32")
    pairs = shape[1] * (shape[1] - 1) // 2 + self_interaction * shape[1]
    if not pairs:
        return
    outputs = DotInteraction(self_interaction)(x)
    assert tuple(outputs.shape) == (shape[0], pairs)
    np.testing.assert_allclose(to_numpy(outputs), explicit(x, self_interaction), atol=1e-5)
    as_list = DotInteraction(self_interaction)([x[:, i] for i in range(shape[1])])
    np.testing.assert_allclose(to_numpy(as_list), to_numpy(outputs), atol=1e-6)


class Product(keras.layers.Layer):
    """x * weight, so that the gradient of x can be asked for as that of a weight."""

    def __init__(self, value, interaction):
        super().__init__()
        self.interaction = interaction
        self.x = self.add_weight(shape=value.shape, name="x")
        self.x.assign(value)
        self.built = True

    def call(self, ones):
        return self.interaction(self.x * ones)


@settings(max_examples=3 if SLOW_TO_COMPILE else 10)
@given(shape=sizes, self_interaction=st.booleans(), seed=st.integers(0, 99))
def test_gradient_is_the_symmetric_product(gradients, shape, self_interaction, seed):
    rng = np.random.default_rng(seed)
    batch, count, _ = shape
    rows, columns = np.tril_indices(count, 0 if self_interaction else -1)
    if not batch or not len(rows):
        return
    x = rng.normal(size=shape).astype("float32")
    upstream = rng.normal(size=(batch, len(rows))).astype("float32")
    expected = np.zeros(shape)
    for pair, (i, j) in enumerate(zip(rows, columns, strict=True)):
        expected[:, i] += upstream[:, pair, None] * x[:, j]
        expected[:, j] += upstream[:, pair, None] * x[:, i]
    layer = Product(x, DotInteraction(self_interaction))
    (received,) = gradients(layer, np.ones(shape, "float32"), upstream)
    np.testing.assert_allclose(received, expected, atol=1e-4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the compiled variant is TensorFlow's")
def test_compiled_variant_agrees():
    import tensorflow as tf

    x = tf.constant(np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32"))

    def value_and_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = DotInteraction(self_interaction=True)(x)
            loss = tf.reduce_sum(outputs * tf.cast(tf.range(15), tf.float32))
        return outputs, tape.gradient(loss, x)

    for one, other in zip(
        tf.function(value_and_gradient)(x), tf.function(value_and_gradient, jit_compile=True)(x), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_functional_model_saves_and_trains(tmp_path):
    ids = keras.Input((6,), dtype="int64")
    vectors = MLETEmbedding(50, 4, 8)(ids)
    interaction = DotInteraction(name="dots")
    outputs = keras.layers.Dense(1)(interaction(vectors))
    assert interaction.output.shape == (None, 15)
    model = keras.Model(ids, outputs)
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).integers(0, 50, (32, 6))
    model.fit(x, np.ones((32, 1)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_wrong_shapes_are_named():
    for shapes in ((3, 4), [(3, 4), (3, 5)], (3, None, 4)):
        with pytest.raises(ValueError, match="`inputs` should be"):
            DotInteraction().build(shapes)


def test_keras_rs_model_takes_the_embedding(to_numpy):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("keras-rs is locked where TensorFlow is: from 0.2 on it needs a newer one than 2.16")
    import keras_rs

    from mlet_tf.collapse import collapse_model

    ids = keras.Input((3,), dtype="int64")
    dense = keras.Input((4,))
    vectors = MLETEmbedding(50, 4, 8)(ids)
    parts = [vectors[:, i] for i in range(3)] + [dense]
    dots = keras_rs.layers.DotInteraction()(parts)
    crossed = keras_rs.layers.FeatureCross()(keras.layers.Concatenate()(parts))
    model = keras.Model([ids, dense], keras.layers.Dense(1)(keras.layers.Concatenate()([dots, crossed])))
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 50, (16, 3)), rng.normal(size=(16, 4)).astype("float32")]
    model.compile("sgd", "mse")
    model.fit(x, np.ones((16, 1)), verbose=0)
    ours = DotInteraction()(keras.ops.convert_to_tensor(np.stack([x[1]] * 4, 1)))
    assert tuple(ours.shape) == tuple(keras_rs.layers.DotInteraction()([x[1]] * 4).shape)
    collapsed = collapse_model(model)
    np.testing.assert_allclose(to_numpy(collapsed(x)), to_numpy(model(x)), atol=1e-6)
