"""Compression of a model of the pipeline, on packed rows: fine-tuning, and what a second call finds."""

import keras
import numpy as np
import pytest
from tests_support import DENSE as WIDTH
from tests_support import VOCABULARY, write_packed_rows

from mlet_tf.compression.packed import compress_packed
from mlet_tf.compression.search import predict
from mlet_tf.config import CompressConfig, ModelConfig, TrainConfig, from_mapping
from mlet_tf.features.names import DENSE, SPARSE
from mlet_tf.metrics import auc
from mlet_tf.training.build import build_model

SIZES = {"a": VOCABULARY, "b": VOCABULARY, "c": 7}


@pytest.fixture(scope="module")
def model():
    """Not trained: its tables are random, its dense layers have much to learn."""
    keras.utils.set_random_seed(0)
    sizes = {"output_dim": 8, "hidden_dim": None, "bottom_units": [8], "top_units": [8], "initial_scale": 1.0}
    return build_model(from_mapping(ModelConfig, sizes, "model"), SIZES, WIDTH)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return [write_packed_rows(folder / f"{seed}.bin", 4000, seed, len(SIZES)) for seed in (0, 1)]


def compressed(model, rows, work, fine_tune, rate=0.01):
    """The compressed model, and the lines about it."""
    train = {"batch_size": 32, "dense": {"name": "lazy_adam", "learning_rate": rate}}
    config = from_mapping(CompressConfig, {"budget": {"ratio": 4}, "fine_tune": fine_tune}, "compress")
    lines = []
    settings = {"train_config": from_mapping(TrainConfig, train, "train"), "work": work, "note": lines.append}
    return compress_packed(model, *rows, config, 1, **settings), lines


def test_fine_tuning_is_taken_where_it_helps_and_goes_on_where_it_stopped(model, rows, tmp_path):
    found, _ = compressed(model, rows, tmp_path, 1.0)
    again, lines = compressed(model, rows, tmp_path, 1.0)
    assert found.report["fine_tuned"] and again.report == found.report
    (chosen,) = (point for point in found.report["points"] if point["chosen"])
    assert found.report["auc_after"] > chosen["auc"] + 0.05
    assert lines[-1].startswith("fine-tuning: AUC +")
    inputs = {DENSE: rows[1].dense_features, SPARSE: rows[1].sparse_features}
    ctr = predict(found.model, inputs)
    np.testing.assert_array_equal(predict(again.model, inputs), ctr)
    assert auc(rows[1].label, ctr) == pytest.approx(found.report["auc_after"], abs=0.03)


def test_fine_tuning_that_helps_nothing_leaves_the_model(model, rows, tmp_path):
    """A model that tells nothing, and learns nothing, is no error: the gate refuses it."""
    constant = keras.models.clone_model(model)
    constant.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
    found, lines = compressed(constant, rows, tmp_path, 0.1, rate=1e-12)
    assert lines[-1] == "fine-tuning: AUC +0.00000 ± 0.00000" and not found.report["fine_tuned"]
    assert found.report["auc_after"] == 0.5
    assert not any(weight.any() for weight in found.model.get_weights() if weight.dtype == "float32")
