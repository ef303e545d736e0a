"""Training on packed rows: reading, resuming after a kill, early stopping, schedules."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from tests_support import DENSE, VOCABULARY, write_packed_rows

from mlet_tf.config import ModelConfig, OptimizerConfig, TablesConfig, TrainConfig
from mlet_tf.errors import InputError
from mlet_tf.metrics import auc
from mlet_tf.optimizers import WarmupDecay
from mlet_tf.training.build import build_model, compile_model
from mlet_tf.training.checkpoints import Progress
from mlet_tf.training.evaluation import Predictor
from mlet_tf.training.loop import fit_epochs, total_steps, train

FOLDERS = [str(folder) for folder in Path(__file__).parents[:2]]
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
MODEL = ModelConfig(output_dim=4, hidden_dim=8, bottom_units=(8,), top_units=(8,))


def fit(folder: Path, **changes):
    """Trains in `folder`, going on from its checkpoints; returns the weights and the progress."""
    config = TrainConfig(
        **{"batch_size": 32, "epochs": 3, "checkpoint_steps": 3, "shuffle_rows": 200, **changes}
    )
    folder.mkdir(exist_ok=True)
    train_rows, eval_rows = (
        write_packed_rows(folder / "train", 640, 0),
        write_packed_rows(folder / "eval", 100, 1),
    )
    keras.utils.set_random_seed(config.seed)
    model = build_model(MODEL, dict.fromkeys(("a", "b"), VOCABULARY), DENSE)
    compile_model(model, config, total_steps(config, train_rows.rows))
    progress = train(model, train_rows, eval_rows, config, folder / "work", str(folder / "board"))
    return model.get_weights(), progress


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole") / "run")


def test_weights_move_and_the_loss_falls(uninterrupted):
    _, progress = uninterrupted
    losses = [record["loss"] for record in progress.history]
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 0.002
    assert progress.history[-1]["eval_auc"] > 0.55


def test_killed_training_goes_on_to_the_same_weights(tmp_path, uninterrupted):
    folder = tmp_path / "run"
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]; import test_trainer; test_trainer.slow_fit(sys.argv[3])"
    )
    command = [sys.executable, "-c", script, *FOLDERS, str(folder)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    checkpoints = folder / "work" / "checkpoints"
    deadline = time.monotonic() + 600
    # Into the second epoch: seven checkpoints an epoch, the newest two are kept.
    while _newest(checkpoints) < 9 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 9 <= _newest(checkpoints) < 21, "the training was not interrupted"
    weights, progress = fit(folder)
    expected, whole = uninterrupted
    for got, want in zip(weights, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)
    assert [record["eval_logloss"] for record in progress.history] == pytest.approx(
        [record["eval_logloss"] for record in whole.history], rel=1e-5
    )


def _newest(checkpoints: Path) -> int:
    return max((int(path.stem.split("-")[1]) for path in checkpoints.glob("*.index")), default=0)


def slow_fit(folder: str) -> None:
    """`fit` that leaves time to be killed between two checkpoints."""
    import tensorflow as tf

    save = tf.train.CheckpointManager.save

    def slow_save(self, *args, **kwargs):
        time.sleep(0.2)
        return save(self, *args, **kwargs)

    tf.train.CheckpointManager.save = slow_save
    fit(Path(folder))


@pytest.mark.parametrize(("metric", "best_of"), [("logloss", np.argmin), ("auc", np.argmax)])
def test_early_stopping_keeps_the_best_weights(tmp_path, metric, best_of):
    dense = OptimizerConfig(name="sgd", learning_rate=1.0)
    stopping = {"early_stopping_patience": 1, "early_stopping_metric": metric}
    weights, progress = fit(tmp_path / "run", epochs=30, dense=dense, **stopping)
    reached = [record[f"eval_{metric}"] for record in progress.history]
    best = int(best_of(reached)) + 1
    assert progress.stopped and len(reached) == progress.epoch == best + 2 < 30
    assert progress.final_epoch == progress.best_epoch == best
    again, _ = fit(tmp_path / "best", epochs=best, dense=dense)
    for got, want in zip(weights, again, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_model_that_stays_a_constant_is_an_error(tmp_path):
    """Not a model that the rest of the pipeline goes on with."""
    rows = write_packed_rows(tmp_path / "rows", 3000, 0)
    still = {"learning_rate": 1e-12}
    config = TrainConfig(batch_size=500, tables=still, projections=still, dense=still)
    model = build_model(MODEL.replace(dot_skip=False), dict.fromkeys(("a", "b"), VOCABULARY), DENSE)
    model(next(rows.blocks(1)))
    last = max((w for w in model.trainable_variables if w.shape[-1:] == (1,)), key=lambda w: len(w.shape))
    last.assign(np.zeros(last.shape))
    compile_model(model, config, total_steps(config, rows.rows))
    folders = tmp_path / "work", str(tmp_path / "board")
    with pytest.raises(
        InputError, match=r"as good as a constant.*AUC 0\.5\d* and normalised entropy 1\."
    ) as error:
        train(model, rows, rows, config, *folders)
    assert "'train.tables.learning_rate'" in str(error.value) and "\n" not in str(error.value)
    assert train(model, rows, rows, config, *folders, must_learn=False).final_epoch


def test_an_epoch_is_each_row_once_in_an_order_of_its_own(tmp_path):
    rows = write_packed_rows(tmp_path / "rows", 100, 0)

    def dense(batches):
        return np.concatenate([inputs["dense_features"].numpy() for inputs, _ in batches])

    plain, first, second = (
        dense(rows.batches(7)),
        *(dense(rows.shuffled_batches(10, seed, 30)) for seed in (1, 2)),
    )
    assert len(plain) == 100  # the short last batch is not lost
    assert sorted(map(tuple, plain)) == sorted(map(tuple, first)) == sorted(map(tuple, second))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(dense(rows.shuffled_batches(10, 1, 30, first_step=4)), first[40:])


def test_a_permuted_epoch_is_the_rows_of_its_permutation(tmp_path):
    """Also where it is gathered in several blocks, and where it resumes."""
    rows = write_packed_rows(tmp_path / "rows", 205, 0)
    order = np.random.default_rng((3, 1)).permutation(205)[:204]

    def check(batches, expected):
        inputs, labels = zip(*batches, strict=True)
        for name, column in (
            ("dense_features", rows.dense_features),
            ("sparse_features", rows.sparse_features),
        ):
            np.testing.assert_array_equal(np.concatenate([x[name] for x in inputs]), column[expected])
        np.testing.assert_array_equal(np.concatenate(labels), rows.label[expected])

    check(rows.permuted_batches(4, (3, 1)), order)
    check(rows.permuted_batches(4, (3, 1), first_step=50), order[200:])


def test_evaluation_is_exact_on_all_rows_and_follows_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("mlet_tf.training.evaluation._BLOCK_ROWS", 64)  # The last block is shorter.
    rows = write_packed_rows(tmp_path / "rows", 150, 0)
    model = build_model(MODEL, dict.fromkeys(("a", "b"), VOCABULARY), DENSE, streaming_metrics=False)
    predictor = Predictor(model)
    for _ in range(2):
        inputs = {"dense_features": rows.dense_features, "sparse_features": rows.sparse_features}
        expected = np.asarray(model(inputs))
        np.testing.assert_allclose(predictor(rows), expected, rtol=1e-5, atol=1e-6)
        assert predictor.metrics(rows)["auc"] == auc(rows.label, predictor(rows))
        model.set_weights([2 * weight for weight in model.get_weights()])


def test_the_last_epoch_may_be_a_part_of_one(tmp_path):
    """With several steps an execution too: not one step more than asked for."""
    rows = write_packed_rows(tmp_path / "rows", 100, 0)
    model = build_model(MODEL, dict.fromkeys(("a", "b"), VOCABULARY), DENSE)
    compile_model(model, TrainConfig(batch_size=10, steps_per_execution=4), 16)
    progress, losses = Progress(), []
    fit_epochs(
        model,
        lambda epoch, first: rows.permuted_batches(10, epoch, first),
        10,
        16,
        progress,
        end_epoch=lambda loss, _: losses.append(loss),
    )
    assert (progress.epoch, len(losses)) == (2, 2)
    assert int(model.optimizer.iterations) == 16


def test_fewer_rows_than_a_batch():
    with pytest.raises(InputError, match=r"batch_size.*is 512, but the train split has only 10 rows"):
        total_steps(TrainConfig(batch_size=512), 10)


@pytest.mark.parametrize(
    ("rows", "workers", "size"),
    [
        (10, 1, 10),
        (100_000, 1, 256),
        (530_000, 1, 512),
        (1_600_000, 1, 2048),
        (10**9, 1, 8192),
        (530_000, 3, 510),
    ],
)
def test_a_batch_by_the_rows(rows, workers, size):
    """A thousandth of the rows in steps of two, between bounds; accumulators as small as its mean gradients."""
    train = TrainConfig().for_rows(rows, workers)
    assert train.batch_size == size
    assert total_steps(train, rows) == rows // size * train.epochs
    assert train.tables.initial_accumulator == train.projections.initial_accumulator == 0.25 / size**2
    assert train.dense.initial_accumulator is None, "Adam has none"


def test_what_is_given_is_kept():
    given = TrainConfig(batch_size=64, tables=TablesConfig(initial_accumulator=0.1))
    train = given.for_rows(10**6)
    assert (train.batch_size, train.tables.initial_accumulator) == (64, 0.1)
    assert train.projections.initial_accumulator == 0.25 / 64**2
    with pytest.raises(ValueError, match="for_rows"):
        total_steps(TrainConfig(), 10**6)


def test_tables_get_the_initial_accumulator_of_the_configuration():
    model = build_model(ModelConfig(bottom_units=(4,), top_units=(4,)), {"a": 100}, 2)
    tables = TablesConfig(name="adagrad", learning_rate=0.02, initial_accumulator=1e-6)
    compile_model(model, TrainConfig(tables=tables), 10)
    model.optimizer.build(model.trainable_variables)
    starts = {v.path: float(v.numpy().max()) for v in model.optimizer.variables if "accumulator" in v.path}
    assert {round(value, 7) for path, value in starts.items() if "embeddings_table" in path} == {1e-6}
    assert {round(value, 7) for path, value in starts.items() if "embeddings_table" not in path} == {0.1}


def test_schedule_warms_up_and_decays_to_zero():
    schedule = WarmupDecay(0.1, 10, "linear", 110)
    assert [round(float(schedule(step)), 6) for step in (0, 9, 10, 60, 110)] == [0.01, 0.1, 0.1, 0.05, 0.0]
    assert json.loads(json.dumps(schedule.get_config()))["decay"] == "linear"


def test_two_devices_train_as_one(tmp_path, uninterrupted):
    """MirroredStrategy halves each batch; sums in another order are all that may differ."""
    script = "import sys; sys.path[:0] = sys.argv[1:3]; import test_trainer; test_trainer.mirrored_fit(sys.argv[3])"
    command = [sys.executable, "-c", script, *FOLDERS, str(tmp_path)]
    subprocess.run(command, env=ENVIRONMENT, check=True, stderr=subprocess.DEVNULL)
    with np.load(tmp_path / "weights.npz") as weights:
        for name, want in zip(weights.files, uninterrupted[0], strict=True):
            np.testing.assert_allclose(weights[name], want, rtol=1e-4, atol=1e-6)


def mirrored_fit(folder: str) -> None:
    """`fit` on two logical CPUs."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        weights, _ = fit(Path(folder) / "run")
    np.savez(Path(folder) / "weights.npz", *weights)
