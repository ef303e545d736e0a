"""The gate's verdicts and the exact metrics it judges by."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlet_tf.components.evaluator.executor import slice_metrics
from mlet_tf.components.evaluator.gate import judge

from mlet_tf.metrics import ctr_metrics

GATE = {
    "bounds": {"auc": {"min": 0.6, "max": None}, "calibration": {"min": 0.9, "max": 1.1}},
    "slice_bounds": {"auc": {"min": 0.55, "max": None}},
    "max_auc_drop": 0.01,
    "max_collapse_loss": 1e-6,
    "max_quantization_loss": 1e-4,
}


def _metrics(**changes):
    good = {
        "auc": 0.7,
        "logloss": 0.4,
        "calibration": 1.0,
        "normalized_entropy": 0.9,
        "rows": 10_000,
        "clicks": 2000,
    }
    return {**good, **changes}


def _judge(overall=None, part=None, uncollapsed=None, last=None, table_dtype="float32"):
    candidate = {(): _metrics(**(overall or {})), ("C1", "a"): _metrics(**(part or {}))}
    before = {(): _metrics(**(uncollapsed or {})), ("C1", "a"): _metrics(**(part or {}))}
    return [str(failure) for failure in judge(candidate, before, last, GATE, table_dtype)]


def test_a_good_model_passes():
    assert _judge() == []


def test_bounds_name_metric_slice_value_and_bound():
    assert _judge({"calibration": 1.2}) == ["calibration of all rows is 1.2, expected at most 1.1"]
    assert _judge(part={"auc": 0.5}) == ["auc of C1=a is 0.5, expected at least 0.55"]


def test_collapse_must_not_cost_anything():
    (failure,) = _judge({"logloss": 0.4001})
    assert failure.startswith("logloss of all rows is 0.4001, expected 0.4 as before the collapse")
    assert _judge({"logloss": 0.3999}) == []


def test_quantisation_may_cost_what_its_own_key_allows():
    worse = {"logloss": 0.40008, "auc": 0.69992}
    assert _judge(worse, table_dtype="int8") == []
    assert len(_judge(worse)) == 2
    (failure,) = _judge({"auc": 0.6998}, table_dtype="int8")
    assert failure == (
        "auc of all rows is 0.6998, expected 0.7 as before collapse and quantisation to int8, within 0.0001"
    )


def test_quantisation_may_cost_a_slice_with_a_hundredth_of_the_clicks_ten_times_as_much():
    few = {"rows": 100, "clicks": 20}
    before = {(): _metrics(), ("C1", "a"): _metrics(**few)}
    for loss, failures in ((0.0009, 0), (0.0011, 1)):
        candidate = {(): _metrics(), ("C1", "a"): _metrics(**few, logloss=0.4 + loss)}
        found = judge(candidate, before, None, GATE, "int8")
        assert [(f.metric, f.slice) for f in found] == [("logloss", "C1=a")] * failures


def test_last_blessed_model():
    (failure,) = _judge(last={(): _metrics(auc=0.72)})
    assert failure == "auc of all rows is 0.7, expected at least 0.71 (the last blessed model has 0.72)"
    assert _judge(last={(): _metrics(auc=0.705)}) == []


def test_nan_does_not_pass():
    assert any("auc of all rows is nan" in text for text in _judge({"auc": math.nan}))


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.5, 0.9])), min_size=2, max_size=30).filter(
        lambda rows: len({label for label, _ in rows}) == 2
    )
)
@settings(max_examples=100)
def test_auc_counts_pairs(rows):
    label, ctr = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    wins = [(p > n) + 0.5 * (p == n) for p in ctr[label == 1] for n in ctr[label == 0]]
    assert ctr_metrics(label, ctr)["auc"] == pytest.approx(np.mean(wins))


def test_metrics_by_their_definitions():
    label, ctr = np.array([1, 0, 0, 1]), np.array([0.8, 0.3, 0.1, 0.6])
    metrics = ctr_metrics(label, ctr)
    loss = -np.mean(np.log([0.8, 0.7, 0.9, 0.6]))
    assert metrics["logloss"] == pytest.approx(loss)
    assert metrics["calibration"] == pytest.approx(1.8 / 2)
    assert metrics["normalized_entropy"] == pytest.approx(loss / math.log(2))
    assert math.isnan(ctr_metrics([1, 1], [0.5, 0.6])["auc"])
    assert all(math.isnan(value) for value in ctr_metrics([], []).values())


def test_small_slices_are_left_out():
    arrays = {
        "label": np.array([0, 1] * 10),
        "ctr.m": np.linspace(0, 1, 20),
        "slice.C1": np.array(["a"] * 15 + ["b"] * 5),
    }
    assert set(slice_metrics(arrays, ("m",), 10)["m"]) == {(), ("C1", "a")}
