"""Optimizers and initial tables as a configuration says."""

import keras
import numpy as np
import pytest

from mlet_tf.config import ModelConfig, OptimizerConfig, TablesConfig, TrainConfig
from mlet_tf.distributed import Cluster, RowShardedEmbeddings, Workers
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature
from mlet_tf.optimizers import SparseSGD
from mlet_tf.training.build import build_model, compile_model
from mlet_tf.training.optimizers import make_optimizer

ROWS = {"few": 5, "some": 20, "many": 80}


def test_rates_and_decays_of_all_three_roles_arrive():
    config = TrainConfig(
        tables=TablesConfig(rows_exponent=0.5, weight_decay=0.1),
        projections=OptimizerConfig(weight_decay=0.2),
        dense=OptimizerConfig(name="lazy_adam", weight_decay=0.3),
    )
    optimizer = make_optimizer(config, 10)
    parts = [optimizer.of_role(role) for role in ("table", "projection", "dense")]
    assert [part.weight_decay for part in parts] == [0.1, 0.2, 0.3]
    assert [part.rows_exponent for part in parts] == [0.5, 0.0, 0.0]


def test_plain_sgd_trains_all_three_roles_without_state():
    model = build_model(ModelConfig(output_dim=4, hidden_dim=8, bottom_units=(4,), top_units=(4,)), ROWS, 2)
    sgd = {"name": "sgd", "learning_rate": 0.5}
    config = TrainConfig(
        tables=TablesConfig(**sgd), projections=OptimizerConfig(**sgd), dense=OptimizerConfig(**sgd)
    )
    compile_model(model, config, 10)
    model.optimizer.build(model.trainable_variables)
    assert all(variable.shape == () for variable in model.optimizer.variables)
    before = model.get_weights()
    model.train_on_batch(model.random_inputs(64), np.arange(64) % 2)
    assert all((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize("scale", [4.0, 16.0])
@pytest.mark.parametrize("hidden_dim", [8, None])
def test_the_initial_scale_multiplies_all_embeddings(scale, hidden_dim):
    def embeddings(**options):
        keras.utils.set_random_seed(0)
        config = ModelConfig(
            output_dim=4, hidden_dim=hidden_dim, bottom_units=(4,), top_units=(4,), **options
        )
        model = build_model(config, ROWS, 2)
        layer = model._embedding_layer
        assert EmbeddingCollection.from_config(layer.get_config()).initial_scale == config.initial_scale
        return [layer.effective_table(name) for name in ROWS], model._top_stack.get_weights()

    (plain, dense), (scaled, same) = embeddings(), embeddings(initial_scale=scale)
    for one, other in zip(plain, scaled, strict=True):
        np.testing.assert_allclose(scale * one, other, rtol=1e-5)
    for one, other in zip(dense, same, strict=True):
        np.testing.assert_array_equal(one, other)


def test_divided_tables_have_the_rates_and_scale_of_whole_ones():
    features = [EmbeddingFeature(name, rows) for name, rows in ROWS.items()]
    options = {"output_dim": 4, "hidden_dim": None, "initial_scale": 4.0}
    keras.utils.set_random_seed(0)
    whole = EmbeddingCollection(features, **options)
    whole.build()
    keras.utils.set_random_seed(0)
    workers = Workers(Cluster(("a:1", "b:2")))
    divided = RowShardedEmbeddings(features, workers=workers, **options)
    divided.build()
    np.testing.assert_allclose(
        divided._local.effective_table("many")[:40], whole.effective_table("many")[::2], rtol=1e-6
    )
    rates = []
    for layer in (whole, divided):
        optimizer = SparseSGD(rows_exponent=0.5)
        optimizer.build(layer.trainable_variables)
        rates.append(optimizer._table_rates[0])
    assert rates[0].factors == rates[1].factors == (0.25, 0.5, 1.0)
    assert rates[1].row_counts == (4, 11, 41)
