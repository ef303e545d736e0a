"""Initial weights: their distributions, and no two of a layer are equal."""

import keras
import numpy as np
import pytest

from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature, MLETEmbedding
from mlet_tf.layers.initializers import INITIALIZATIONS


def chain(*args, **kwargs):
    layer = MLETEmbedding(*args, **kwargs)
    layer.build()
    return layer


def test_initializations_have_the_stated_distributions():
    keras.utils.set_random_seed(0)
    for name, deviation in (("fixed_variance", 0.25), ("variance_preserving", 32**-0.5)):
        layer = chain(4000, 16, 32, initialization=name)
        table, projection = (keras.ops.convert_to_numpy(v) for v in layer.weights)
        limit = 4000**-0.5
        assert np.abs(table).max() <= limit
        assert table.std() == pytest.approx(limit / 3**0.5, rel=0.02)
        assert abs(table.mean()) < 0.01 * limit
        assert projection.std() == pytest.approx(deviation, rel=0.15)
    layer = chain(4000, 16, (32, 8), initialization="orthogonal")
    first, second = (keras.ops.convert_to_numpy(v) for v in layer.projections)
    np.testing.assert_allclose(first.T @ first, np.eye(8), atol=1e-5)
    np.testing.assert_allclose(second @ second.T, np.eye(8), atol=1e-5)
    again = []
    for _ in range(2):
        keras.utils.set_random_seed(5)
        again.append(chain(7, 2, 3).effective_table())
    np.testing.assert_array_equal(*again)


WITH_SEED = [
    (None, None),
    (keras.initializers.RandomNormal(seed=7), keras.initializers.RandomNormal(seed=7)),
    (None, keras.initializers.GlorotUniform(seed=7)),
    (None, keras.initializers.RandomUniform()),
    (None, keras.initializers.Orthogonal(seed=keras.random.SeedGenerator(7))),
    (keras.initializers.VarianceScaling(seed=3), keras.initializers.RandomNormal(seed=3)),
]


@pytest.mark.parametrize(("table", "projection"), WITH_SEED)
def test_no_two_weights_start_equal(table, projection):
    """Links of one shape had the same values, as one initialiser object made them all."""
    layer = chain(6, 6, (6, 6, 6), table_initializer=table, projection_initializer=projection)
    assert_distinct(layer)
    if projection is not None and isinstance(getattr(projection, "seed", None), int):
        again = chain(6, 6, (6, 6, 6), projection_initializer=projection)
        other = chain(6, 6, (6, 6, 6), projection_initializer=projection)
        seeded = projection.get_config()["seed"] is not None
        for one, two in zip(again.projections, other.projections, strict=True):
            same = np.array_equal(*(keras.ops.convert_to_numpy(x) for x in (one, two)))
            assert same == seeded


def test_no_two_weights_of_other_layers_start_equal():
    features = [EmbeddingFeature(name, 6) for name in "abc"] + [EmbeddingFeature("d", 6, hidden_dim=0)]
    for name in INITIALIZATIONS:
        layer = EmbeddingCollection(features, 6, (6, 6, 6), direct_threshold=0, initialization=name)
        layer.build()
        assert_distinct(layer)
        factors = [f for feature in features for f in (layer.factorization(feature.name),)]
        tables = [next(f.iter_table()) for f in factors]
        links = [link for f in factors for link in f.projections]
        assert_all_differ([*tables, *links])


def test_initialization_of_older_files_is_known():
    layer = MLETEmbedding.from_config({**MLETEmbedding(5, 2, 3).get_config(), "initialization": "authors"})
    assert layer.initialization == "fixed_variance"


def assert_distinct(layer):
    assert_all_differ([keras.ops.convert_to_numpy(weight) for weight in layer.weights])


def assert_all_differ(values):
    for i, one in enumerate(values):
        for other in values[:i]:
            if one.shape == other.shape:
                assert np.abs(one - other).max() > 1e-3
