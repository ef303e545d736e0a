"""Whether predictions say anything about the labels."""

import math

import numpy as np
import pytest

from mlet_tf.training.learned import judge, judge_predictions

ROWS = 20_000


def labels(ctr=0.3, rows=ROWS, seed=0):
    return (np.random.default_rng(seed).random(rows) < ctr).astype(np.float32)


def test_a_constant_is_one():
    for ctr in (0.05, 0.3, 0.5):
        verdict = judge_predictions(labels(ctr), np.full(ROWS, ctr, np.float32))
        assert verdict.fault == "constant"
        assert verdict.auc == 0.5
        assert verdict.normalized_entropy == pytest.approx(1, abs=1e-3)


def test_noise_around_the_mean_is_a_constant_too():
    generator = np.random.default_rng(1)
    noise = [0.3 * np.exp(generator.normal(0, 0.1, ROWS)) for _ in range(200)]
    faults = [judge_predictions(labels(seed=seed), ctr).fault for seed, ctr in enumerate(noise)]
    assert faults.count("constant") >= 197, "3 standard errors leave out 1 in 370"


def test_a_weak_model_has_learned():
    """An AUC of 0.52 is five standard errors of 20,000 rows."""
    generator = np.random.default_rng(2)
    true = 1 / (1 + np.exp(0.85 - generator.normal(0, 0.08, ROWS * 5)))
    label = (generator.random(ROWS * 5) < true).astype(np.float32)
    verdict = judge_predictions(label, true)
    assert verdict.fault is None
    assert 0.505 < verdict.auc < 0.53


def test_a_gain_of_entropy_that_chance_does_not_give_is_learned():
    """As is what ranks rows the wrong way round: it is not a constant."""
    label = labels()
    entropy = -(label.mean() * math.log(label.mean()) + (1 - label.mean()) * math.log(1 - label.mean()))
    bound = 9 / (2 * ROWS)
    assert judge(label, 0.5, entropy - 0.9 * bound).fault == "constant"
    assert judge(label, 0.5, entropy - 1.1 * bound).fault is None
    assert judge(label, 0.45, 1.1 * entropy).fault is None


def test_few_rows_and_labels_of_one_kind_show_nothing():
    assert judge_predictions(labels(rows=300), np.full(300, 0.3)).fault is None
    for label in (np.zeros(ROWS), np.ones(ROWS)):
        assert judge_predictions(label, np.full(ROWS, 0.3)).fault is None


def test_predictions_that_are_no_numbers():
    verdict = judge_predictions(labels(), np.full(ROWS, np.nan))
    assert verdict.fault == "diverged"
    assert "lower the learning rates" in str(verdict)


def test_the_verdict_is_one_line_with_metrics_and_remedies():
    label = labels()
    text = str(judge_predictions(label, np.full(ROWS, label.mean())))
    assert "AUC 0.5000 and normalised entropy 1.0000 on 20,000 rows" in text
    for key in ("train.tables.learning_rate", "initial_accumulator", "model.initial_scale", "model.dot_skip"):
        assert key in text
    assert "\n" not in text
