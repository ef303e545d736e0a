"""When training stops, and whose weights it ends with."""

import keras
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlet_tf.config import TrainConfig
from mlet_tf.training.checkpoints import Progress
from mlet_tf.training.early_stopping import EarlyStopping, WeightsInMemory

VALUES = st.lists(st.sampled_from([0.2, 0.3, 0.4, 0.5, float("nan")]), min_size=1, max_size=12)


class Kept:
    """The epoch whose weights are kept and the one whose weights the model has."""

    def __init__(self, progress):
        self.progress, self.kept, self.restored = progress, None, None

    def save_best(self):
        self.kept = self.progress.epoch

    def restore_best(self):
        self.restored = self.kept


def run(values, metric, patience, first=0):
    """Epochs after the first ones that reach these values, until training stops."""
    progress = Progress(epoch=first)
    best = Kept(progress)
    config = TrainConfig(early_stopping_metric=metric, early_stopping_patience=patience)
    stopping = EarlyStopping(config, progress, best)
    for value in values:
        progress.epoch += 1
        other = "auc" if metric == "logloss" else "logloss"
        stopping.judge({"epoch": progress.epoch, f"eval_{metric}": value, f"eval_{other}": 0.5})
        if progress.stopped:
            break
    stopping.end()
    return progress, best


@given(VALUES, st.sampled_from(["logloss", "auc"]), st.integers(0, 3))
def test_the_first_of_the_best_epochs_is_taken_and_the_patience_kept(values, metric, patience):
    progress, best = run(values, metric, patience)
    seen = np.array(values[: progress.epoch])
    if np.isnan(seen).all():
        assert progress.final_epoch == 1
    else:
        expected = 1 + int(np.nanargmin(seen) if metric == "logloss" else np.nanargmax(seen))
        assert progress.final_epoch == best.restored == expected
    assert progress.epoch <= progress.final_epoch + patience + 1
    assert progress.stopped == (progress.epoch == progress.final_epoch + patience + 1)
    assert progress.stopped or progress.epoch == len(values)


@given(VALUES, st.integers(0, 3))
def test_epochs_before_the_first_that_is_scored_do_not_count(values, patience):
    """As where a training goes on with another model."""
    later, _ = run(values, "auc", patience, first=4)
    progress, _ = run(values, "auc", patience)
    assert later.final_epoch == progress.final_epoch + 4
    assert later.epoch == progress.epoch + 4


@given(VALUES)
def test_without_patience_all_epochs_are_trained_and_the_last_weights_taken(values):
    progress, best = run(values, "logloss", None)
    assert progress.epoch == progress.final_epoch == len(values)
    assert best.kept is None and best.restored is None


def test_weights_in_memory_are_those_that_were_kept():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    best = WeightsInMemory(model)
    expected = [weight.copy() for weight in model.get_weights()]
    best.save_best()
    model.set_weights([weight + 1 for weight in expected])
    best.restore_best()
    for got, want in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(got, want)
