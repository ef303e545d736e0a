"""MLET for a share of the steps, then direct."""

import numpy as np
import pytest

from mlet_tf.config import from_mapping
from mlet_tf.config.sweep import SweepConfig
from mlet_tf.experiments import switching
from mlet_tf.experiments.cells import Cell, cells
from mlet_tf.experiments.preparation import prepare
from mlet_tf.experiments.statistics import label
from mlet_tf.experiments.trial import Trial, build_model, fit, run_trial
from mlet_tf.training.evaluation import Predictor
from mlet_tf.training.loop import steps_an_epoch, total_steps

SWEEP = {
    "name": "switching",
    "output": "runs/switching",
    "model": {"bottom_units": [4], "top_units": [8]},
    "train": {"batch_size": 64, "epochs": 2, "schedule": {"decay": "linear"}},
    "sweep": {
        "generated": {"rows": 1500, "categoricals": 3, "integers": 1, "rank": 2, "vocabulary": 30},
        "grid": [{}],
    },
}


def sweep(**train):
    return from_mapping(SweepConfig, SWEEP | {"train": SWEEP["train"] | train})


RATES = tuple((f"train.{role}.learning_rate", 0.1) for role in ("tables", "projections", "dense"))


def trial_of(**choices):
    return Trial(Cell("mlet", 2, 8, "fixed_variance", **choices), "final", 0, RATES)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(sweep(), tmp_path_factory.mktemp("data"))


def test_a_collapse_keeps_predictions_steps_and_the_state_of_the_dense_part(data):
    config = sweep(dense={"name": "lazy_adam"}, tables={"weight_decay": 0.5})
    trial = trial_of(direct_threshold=5)
    model = build_model(trial, config, data)
    train = trial.training(config, data)
    fit(model, data.splits, train)
    collapsed = switching.collapse_and_compile(model, train, total_steps(train, data.splits["train"].rows))
    predictions = [Predictor(one)(data.splits["test"]) for one in (model, collapsed)]
    np.testing.assert_allclose(*predictions, atol=1e-5)
    assert len(collapsed._embedding_layer.projections) == 0
    steps = int(model.optimizer.iterations)
    assert steps > 0
    assert {int(part.iterations) for part in (collapsed.optimizer, *collapsed.optimizer.optimizers)} == {
        steps
    }
    before, after = (one.optimizer.of_role("dense").variables for one in (model, collapsed))
    assert len(before) > 2
    for source, target in zip(before, after, strict=True):
        np.testing.assert_array_equal(source, target)
    state = {v.name: v.numpy() for v in collapsed.optimizer.of_role("table").variables if len(v.shape) == 2}
    assert state and all((value == np.float32(0.25 / 64**2)).all() for value in state.values()), (
        "an Adagrad that starts anew"
    )


@pytest.mark.parametrize("share", [0.25, 0.9])
def test_without_factors_and_state_a_collapse_changes_nothing(data, share):
    """The same rows in the same order, the same schedule: all tables are direct here, and SGD has no state."""
    rule = {"name": "sgd"}
    config = sweep(tables=rule, projections=rule, dense=rule)
    trial = trial_of(direct_threshold=1000, optimizer="sgd")
    rows, train = data.splits["train"], trial.training(config, data)
    plain = build_model(trial, config, data)
    fit(plain, data.splits, train)
    model = build_model(trial, config, data)

    def batches(epoch, step):
        return rows.permuted_batches(train.batch_size, (train.seed, epoch), step)

    steps = steps_an_epoch(rows.rows, train.batch_size), total_steps(train, rows.rows)
    switched, progress = switching.fit_and_collapse(model, batches, *steps, share, train)
    fit(switched, data.splits, train, progress=progress)
    assert int(model.optimizer.iterations) == round(share * total_steps(train, rows.rows))
    assert int(switched.optimizer.iterations) == int(plain.optimizer.iterations)
    for expected, received in zip(plain.get_weights(), switched.get_weights(), strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


def test_a_trial_says_when_it_was_collapsed(data):
    config = sweep()
    records = [run_trial(trial_of(collapse_at=share), config, data)[0] for share in (None, 0.5)]
    assert [record["collapse_at"] for record in records] == [None, 0.5]
    assert records[0]["key"] != records[1]["key"]
    assert records[0]["bytes"] == records[1]["bytes"]
    assert records[0]["test"] != records[1]["test"]
    assert label(records[1]).endswith("collapsed at 0.5")


def test_only_factors_are_collapsed():
    grid = {"embedding": ["direct", "mlet", "nested"], "collapse_at": [None, 0.25]}
    config = from_mapping(SweepConfig, SWEEP | {"sweep": SWEEP["sweep"] | {"grid": [grid]}})
    found = [(cell.kind, cell.collapse_at) for cell in cells(config, config.sweep.grid[0])]
    assert found == [("direct", None), ("mlet", None), ("mlet", 0.25), ("nested", None)]
