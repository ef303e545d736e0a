"""What holds for every kind: the plan has the bytes, and the served form gives the same embeddings."""

import subprocess
import sys
from typing import get_args

import keras
import numpy as np
import pytest

from mlet_tf.config.sweep import Kind
from mlet_tf.embeddings import KINDS, Budget, Plan
from mlet_tf.embeddings.kinds import budget_of_columns
from mlet_tf.errors import InputError
from mlet_tf.layers import EmbeddingFeature

ROWS = {"a": 500, "b": 30, "tiny": 3}
WIDTH = {"projected": 8, "hash": 8, "qr": 8}  # Of the rest of the model; others have 4.
IDS = np.random.default_rng(0).integers(0, list(ROWS.values()), (300, len(ROWS)))
IDS[:, 0] = np.arange(300) + 200


def trained(name, dtype="float32"):
    """The plan of a kind at the bytes of four columns, and a layer whose weights are random."""
    kind, width = KINDS[name], WIDTH.get(name, 4)
    plan = kind.plan(ROWS, width, budget_of_columns(ROWS, 4))
    features = [EmbeddingFeature(name, size) for name, size in ROWS.items()]
    layer = kind.layer(plan, features, 16 if kind.factorised else None, direct_threshold=0, dtype=dtype)
    layer(IDS)
    generator = np.random.default_rng(1)
    layer.set_weights([generator.normal(size=w.shape) if w.ndim > 1 else w for w in layer.get_weights()])
    return plan, layer


def numbers(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def nbytes(variables):
    return sum(keras.ops.convert_to_numpy(variable).nbytes for variable in variables)


def test_a_sweep_can_name_every_kind():
    assert set(get_args(Kind)) == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_served_form_gives_the_same_and_has_the_bytes_of_the_plan(name):
    plan, layer = trained(name)
    served = KINDS[name].served(layer, plan)
    expected = numbers(layer(IDS))
    np.testing.assert_allclose(numbers(served(IDS)), expected, atol=1e-5 * np.abs(expected).max())
    assert nbytes(served.variables) == plan.bytes.embedding
    # Matrices and mean rows of projections come on top, and tables of one row.
    assert plan.bytes.embedding <= budget_of_columns(ROWS, 4).bytes + 3 * 13 * 4 * 8
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("form", ["trained", "served"])
def test_keras_files(name, form, tmp_path):
    plan, layer = trained(name)
    layer = KINDS[name].served(layer, plan) if form == "served" else layer
    inputs = keras.Input((len(ROWS),), dtype="int64")
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(numbers(again(IDS)), numbers(model(IDS)), atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_half_precision(name):
    plan, layer = trained(name, "mixed_bfloat16")
    served = KINDS[name].served(layer, plan)
    for made in (layer, served):
        assert keras.backend.standardize_dtype(made(IDS).dtype) == "bfloat16"
    expected = numbers(layer(IDS))
    np.testing.assert_allclose(numbers(served(IDS)), expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("batch", [0, 1, 4096])
def test_batches(name, batch):
    plan, layer = trained(name)
    ids = np.tile(IDS, (14, 1))[:batch]
    for made in (layer, KINDS[name].served(layer, plan)):
        assert numbers(made(ids)).shape == (batch, len(ROWS), plan.output_dim)


def test_hashing_keeps_its_budget_and_changes_nothing_at_full_size():
    plan, half = trained("hash")
    assert [feature.bands[0].rows for feature in plan.features] == [250, 15, 2]
    ids = np.zeros((500, 3), int)
    ids[:, 0] = np.arange(500)
    distinct = len(np.unique(numbers(half(ids))[:, 0], axis=0))
    assert 190 < distinct <= 250  # Of 250 buckets, 216 are hit on average.
    whole = KINDS["hash"].plan(ROWS, 8, Budget(ratio=1))
    assert whole == Plan.direct(ROWS, 8)


def test_quotient_and_remainder_tell_all_ids_apart():
    _, layer = trained("qr")
    ids = np.zeros((500, 3), int)
    ids[:, 0] = np.arange(500)
    assert len(np.unique(numbers(layer(ids))[:, 0], axis=0)) == 500


def test_budgets_below_one_column_are_refused():
    with pytest.raises(
        InputError, match=r"Budget: expected at least 2132 bytes, one column. Received: .*2131"
    ):
        KINDS["direct"].plan(ROWS, 8, Budget(bytes=2131))


def test_plans_and_kinds_need_no_keras():
    """The configuration of a sweep is checked before Keras is imported, which takes seconds."""
    code = "import sys, mlet_tf.embeddings.kinds, mlet_tf.experiments.cells; sys.exit('keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
