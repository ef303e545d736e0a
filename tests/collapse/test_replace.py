"""Layers are exchanged wherever a model has them."""

import keras
import numpy as np
import pytest

from mlet_tf import MLETEmbedding, collapse_model, replace_layers
from mlet_tf.replace import layers_of

IDS = np.random.default_rng(0).integers(0, 20, (6, 3))


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def collapsed_layer(layer):
    return layer.collapse() if isinstance(layer, MLETEmbedding) else None


def assert_replaced(model, inputs=None):
    made = replace_layers(model, collapsed_layer, inputs)
    assert type(made) is type(model)
    assert not any(isinstance(layer, MLETEmbedding) for layer in layers_of(made))
    assert all("projection" not in variable.path for variable in made.variables)
    np.testing.assert_allclose(to_numpy(made(IDS)), to_numpy(model(IDS)), atol=1e-5)
    assert not {id(v) for v in made.variables} & {id(v) for v in model.variables}
    return made


class Tower(keras.Model):
    """Makes a functional and a Sequential model in its constructor."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        ids = keras.Input((3,), dtype="int32")
        x = keras.layers.Lambda(lambda t: 2 * t)(MLETEmbedding(20, 4, 8)(ids))
        self.functional = keras.Model(ids, keras.layers.Dense(4)(x))
        self.sequential = keras.Sequential([MLETEmbedding(20, 4, (6, 6)), keras.layers.Dense(4)])

    def call(self, ids):
        return self.functional(ids) + self.sequential(ids)

    def get_config(self):
        return {"name": self.name}


class BuildsLate(keras.layers.Layer):
    """Makes its layers in `build`, in a tuple."""

    def build(self, input_shape):
        self.parts = (MLETEmbedding(20, 4, 8), keras.layers.Dense(4))

    def call(self, ids):
        return self.parts[1](self.parts[0](ids))


class Holder(keras.Model):
    """Takes a layer, which its configuration holds as an object, and uses it twice."""

    def __init__(self, part, **kwargs):
        super().__init__(**kwargs)
        self.part = part
        self.again = {"part": part, "dense": keras.layers.Dense(4)}

    def call(self, ids):
        return self.again["dense"](self.part(ids)) + self.again["part"](ids)

    def get_config(self):
        return {"name": self.name, "part": self.part}


class OwnConstructor(keras.Model):
    """A functional model that calls its layers in a constructor of its own."""

    def __init__(self, width, **kwargs):
        ids = keras.Input((3,), dtype="int32")
        super().__init__(ids, keras.layers.Dense(2)(MLETEmbedding(20, width, 8)(ids)), **kwargs)
        self.width = width

    def get_config(self):
        return {"width": self.width}


def test_models_made_in_constructors():
    model = Tower()
    model(IDS)
    assert_replaced(model)


def test_layers_made_in_build():
    model = keras.Sequential([keras.Input((3,), dtype="int32"), BuildsLate()])
    made = assert_replaced(model)
    assert isinstance(made.layers[0].parts[0], keras.layers.Embedding)


def test_objects_in_configurations_and_shared_attributes():
    model = Holder(MLETEmbedding(20, 4, 8, name="items"))
    model(IDS)
    made = assert_replaced(model, IDS)
    assert made.part is made.again["part"] and made.part.name == "items"
    assert [v.path.split("/")[-2] for v in made.variables] == ["items", *[made.again["dense"].name] * 2]


def test_functional_models_with_constructors_of_their_own():
    model = OwnConstructor(4)
    made = replace_layers(model, collapsed_layer)
    assert not any(isinstance(layer, MLETEmbedding) for layer in layers_of(made))
    np.testing.assert_allclose(to_numpy(made(IDS)), to_numpy(model(IDS)), atol=1e-5)


def test_any_layer_may_be_replaced_and_new_ones_are_built():
    """A rule is asked from the outermost layer in, once for each, and not inside of what it replaces."""
    ids = keras.Input((3,), dtype="int32")
    shared = keras.layers.Dense(4, name="shared")
    inner = keras.Sequential([keras.Input((3, 4)), keras.layers.Dense(4, name="below")], name="inner")
    x = keras.layers.Embedding(20, 4)(ids)
    model = keras.Model(ids, inner(shared(shared(x))))
    asked = []

    def rule(layer):
        asked.append(layer.name)
        if layer.name == "shared":
            return keras.layers.Dense(4, kernel_initializer="identity", name="shared")
        return (
            keras.Sequential([keras.layers.Rescaling(3.0)], name="inner") if layer.name == "inner" else None
        )

    made = replace_layers(model, rule)
    assert "below" not in asked and len(asked) == len(set(asked))
    table = to_numpy(model.layers[1].embeddings)
    np.testing.assert_allclose(to_numpy(made(IDS)), 3 * table[IDS], atol=1e-6)
    assert replace_layers(model, lambda layer: None)(IDS).shape == (6, 3, 4)


def test_collapse_holds_one_result_beside_the_model():
    """Factors are never made again, wherever the layer is held."""
    made = []

    class Counted(MLETEmbedding):
        def build(self, input_shape=None):
            made.append(self.name)
            super().build(input_shape)

    class Made(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.table = Counted(20, 4, 8)

        def call(self, ids):
            return self.table(ids)

        def get_config(self):
            return {"name": self.name}

    ids = keras.Input((3,), dtype="int32")
    in_wrapper = keras.layers.TimeDistributed(Counted(20, 4, 8))(keras.layers.Reshape((3, 1))(ids))
    functional = keras.Model(ids, in_wrapper[:, :, 0] + Counted(20, 4, 8)(ids) + Made()(ids))
    for model in (Made(), functional):
        model(IDS)
        made.clear()
        collapse_model(model)
        assert not made


def test_models_without_weights_are_refused():
    with pytest.raises(ValueError, match="should be built"):
        replace_layers(keras.Sequential([keras.layers.Dense(2)]), lambda layer: None)
