"""The gate's verdicts and the exact metrics it judges by."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.gate import check_metrics, write_gate
from mlet_tf.metrics import METRICS, auc_difference, auc_standard_error, ctr_metrics
from mlet_tf.predictions import slice_metrics

GATE = {
    "bounds": {"auc": {"min": 0.6, "max": None}, "calibration": {"min": 0.9, "max": 1.1}},
    "slice_bounds": {"auc": {"min": 0.55, "max": None}},
    "max_auc_drop": 0.01,
    "max_collapse_loss": 1e-6,
    "max_quantization_loss": 1e-4,
}


def judge(*arguments):
    """The checks that fail."""
    return [check for check in check_metrics(*arguments) if not check.passed]


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


WITHOUT_BOUNDS = {**GATE, "bounds": {}, "slice_bounds": {}}


def _by_default(gate=WITHOUT_BOUNDS, **changes):
    """Failures of a model by the rules that hold where the configuration says nothing."""
    metrics = {(): _metrics(**changes)}
    return [str(failure) for failure in judge(metrics, metrics, None, gate)]


def _of_rows(label, ctr):
    """Metrics as the component has them."""
    return slice_metrics({"label": np.asarray(label), "ctr.m": np.asarray(ctr)}, ("m",), 1)["m"]


@pytest.mark.parametrize(("label", "metrics"), [(0, 3), (1, 2)])
def test_rows_of_one_label_are_not_judged(label, metrics):
    """2,000 rows without a click were blessed."""
    rows = _of_rows(np.full(2000, label), np.linspace(0.1, 0.2, 2000))
    failures = judge(rows, rows, None, WITHOUT_BOUNDS)
    assert [failure.metric for failure in failures] == [
        name for name in METRICS if math.isnan(rows[()][name])
    ]
    assert len(failures) == metrics
    assert str(failures[0]) == f"auc of all rows is nan, expected a number (all labels are {label})"


def test_predictions_that_are_no_numbers_fail_in_every_slice():
    arrays = {
        "label": np.array([0, 1] * 10),
        "ctr.m": np.array([0.1, 0.2] * 9 + [0.3, math.nan]),
        "slice.C1": np.array(["a"] * 10 + ["b"] * 10),
    }
    rows = slice_metrics(arrays, ("m",), 1)["m"]
    failures = [str(failure) for failure in judge(rows, rows, None, WITHOUT_BOUNDS)]
    assert "logloss of C1=b is nan, expected a number (the predictions are not numbers)" in failures
    assert any(text.startswith("calibration of all rows is nan") for text in failures)
    assert not any("C1=a" in text for text in failures)


def test_a_slice_without_clicks_is_no_fault_of_the_model():
    metrics = _metrics(clicks=0, auc=math.nan, calibration=math.nan, normalized_entropy=math.nan)
    assert _judge(part=metrics) == []


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({}, None),
        ({"normalized_entropy": 0.9999}, None),
        (
            {"normalized_entropy": 1.0},
            "normalized_entropy of all rows is 1, expected below 1 (what the mean CTR as a constant prediction "
            "reaches)",
        ),
        ({"auc": 0.5073}, None),  # The standard error of 2,000 clicks among 10,000 rows is 0.0072.
        (
            {"auc": 0.507},
            "auc of all rows is 0.507, expected at least 0.507237 (0.5 and its standard error, 0.0072)",
        ),
        ({"calibration": 1.17}, None),  # 1.1 exp(3 / sqrt(2000)) is 1.1763.
        ({"calibration": 0.86}, None),
        (
            {"calibration": 1.18},
            "calibration of all rows is 1.18, expected at most 1.17632 (10% and 3 standard "
            "errors of 2,000 clicks)",
        ),
        ({"calibration": 0.84}, "calibration of all rows is 0.84, expected at least 0.850108"),
        ({"calibration": 0.0}, "calibration of all rows is 0, expected at least"),
    ],
)
def test_rules_without_configuration(changes, failure):
    failures = _by_default(**changes)
    assert len(failures) == (failure is not None)
    assert not failures or failures[0].startswith(failure)


def test_few_clicks_allow_more():
    few = {"rows": 400, "clicks": 25}
    assert _by_default(**few, calibration=1.9) == []
    assert len(_by_default(**few, auc=0.53, calibration=2.1)) == 2


def test_a_model_that_knows_nothing_is_not_blessed():
    """AUC .55 with calibration 1.79 and normalised entropy 1.15 was blessed."""
    failures = _by_default(auc=0.55, calibration=1.79, normalized_entropy=1.15, rows=2000, clicks=400)
    assert [text.split()[0] for text in failures] == ["calibration", "normalized_entropy"]


@pytest.mark.parametrize(
    ("bounds", "changes"),
    [
        ({"auc": {"min": 0.4, "max": None}}, {"auc": 0.45}),
        ({"calibration": {"min": None, "max": 2.0}}, {"calibration": 0.1}),
        ({"normalized_entropy": {"min": None, "max": None}}, {"normalized_entropy": 3.0}),
    ],
)
def test_bounds_replace_the_rule_of_their_metric(bounds, changes):
    assert len(_by_default(**changes)) == 1
    assert _by_default({**WITHOUT_BOUNDS, "bounds": bounds}, **changes) == []


def test_every_check_has_its_thresholds():
    metrics = {(): _metrics()}
    checks = check_metrics(metrics, metrics, {(): _metrics(auc=0.69)}, WITHOUT_BOUNDS)
    assert all(check.passed and (check.min is not None or check.max is not None) for check in checks)
    assert [check.metric for check in checks] == [
        *("auc", "calibration", "normalized_entropy"),
        "auc",  # Against the last blessed model.
        *("auc", "logloss", "normalized_entropy"),  # Against the trained model.
    ]


def test_a_last_blessed_model_without_an_auc_blocks_nothing():
    assert _judge(last={(): _metrics(auc=math.nan)}) == []


def test_results_are_json_whatever_the_metrics_are(tmp_path):
    rows = _of_rows(np.zeros(50, int), np.full(50, 0.1))
    write_gate(str(tmp_path), {"collapsed": rows}, check_metrics(rows, rows, None, WITHOUT_BOUNDS))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads((tmp_path / "gate.json").read_text(), parse_constant=refuse)
    assert found["metrics"]["collapsed"][0]["auc"] is None and not found["blessed"]
    assert found["checks"][0]["value"] is None and not found["checks"][0]["passed"]


@pytest.mark.parametrize(("auc", "positives", "negatives"), [(0.5, 30, 70), (0.75, 20, 200), (0.9, 50, 50)])
def test_the_standard_error_of_an_auc_is_that_of_many_samples(auc, positives, negatives):
    """Exponential scores, the distributions behind the estimate of Hanley and McNeil."""
    rng = np.random.default_rng(0)
    rate = (1 - auc) / auc  # P(positive > negative) = 1 / (1 + rate) for exponentials of rates `rate` and 1.
    label = np.repeat([1, 0], [positives, negatives])
    samples = [
        ctr_metrics(
            label, np.concatenate([rng.exponential(1 / rate, positives), rng.exponential(1, negatives)])
        )
        for _ in range(1000)
    ]
    found = np.array([metrics["auc"] for metrics in samples])
    assert found.mean() == pytest.approx(auc, abs=0.01)
    assert auc_standard_error(auc, positives, negatives) == pytest.approx(found.std(), rel=0.1)


def test_the_standard_error_at_the_ends():
    assert auc_standard_error(1.0, 3, 4) == auc_standard_error(0.0, 3, 4) == 0.0
    assert math.isnan(auc_standard_error(math.nan, 3, 4))


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


def _judge_compressed(overall, part, last=None, gate=GATE, max_drop=0.0005):
    """Failures of a compressed model; each of the two slices as changes, `auc_drop_error` 0 if not among them."""
    candidate = {
        (): _metrics(auc_drop_error=0.0, **overall),
        ("C1", "a"): _metrics(auc_drop_error=0.0) | part,
    }
    before = {key: _metrics(clicks=metrics["clicks"]) for key, metrics in candidate.items()}
    for key, metrics in candidate.items():
        if metrics["clicks"] == 0:
            before[key] = metrics
    return [str(check) for check in judge(candidate, before, last, gate, "float32", max_drop)]


def test_compression_may_cost_its_budget_in_every_slice():
    assert _judge_compressed({"auc": 0.6996}, {"auc": 0.6996}) == []
    (failure,) = _judge_compressed({"auc": 0.6996}, {"auc": 0.6994})
    assert failure == (
        "auc of C1=a is 0.6994, expected at least 0.6995 (0.7 before the compression, less 0.0005 and 3 standard "
        "errors of the difference, 0)"
    )
    (failure,) = _judge_compressed({"auc": 0.6994}, {"auc": 0.6996})
    assert failure.startswith("auc of all rows is 0.6994, expected at least 0.6995")


def test_a_slice_that_shows_its_loss_less_clearly_is_allowed_more():
    """Three standard errors of the difference of the two AUCs, of that slice."""
    assert _judge_compressed({}, {"auc": 0.6967, "auc_drop_error": 0.001}) == []
    (failure,) = _judge_compressed({}, {"auc": 0.6964, "auc_drop_error": 0.001})
    assert failure.startswith("auc of C1=a is 0.6964, expected at least 0.6965") and "0.003)" in failure
    assert len(_judge_compressed({"auc": 0.6967}, {"auc": 0.6967, "auc_drop_error": 0.001})) == 1


def test_compression_is_not_held_to_the_logloss_of_the_uncollapsed_model():
    worse = {"logloss": 0.41, "normalized_entropy": 0.92}
    assert _judge_compressed(worse, worse) == []


def test_a_compressed_model_keeps_to_all_other_bounds():
    failures = _judge_compressed({"calibration": 1.2, "auc": 0.6999}, {}, {(): _metrics(auc=0.72)})
    assert [text.split(",")[0] for text in failures] == [
        "calibration of all rows is 1.2",
        "auc of all rows is 0.6999",
    ]
    gate = {**GATE, "slice_bounds": {"auc": {"min": 0.75, "max": None}}}
    assert len(_judge_compressed({}, {}, gate=gate)) == 1
    (failure,) = _judge_compressed({"normalized_entropy": 1.1}, {}, gate=WITHOUT_BOUNDS)
    assert failure.startswith("normalized_entropy of all rows is 1.1, expected below 1")


def test_an_auc_that_the_compression_made_no_number_fails():
    failures = _judge_compressed({}, {"auc": math.nan, "auc_drop_error": math.nan})
    assert [text.split(",")[0] for text in failures] == ["auc of C1=a is nan"] * 2


def test_a_slice_without_a_click_is_no_fault_of_the_compression():
    nothing = dict.fromkeys(("auc", "calibration", "normalized_entropy", "auc_drop_error"), math.nan)
    assert _judge_compressed({}, {"clicks": 0, **nothing}) == []


def test_a_slice_with_one_click_is_allowed_the_error_of_its_auc():
    """One click has no variance: the error of the difference is no number."""
    error = auc_standard_error(0.7, 1, 9999)
    for auc, failures in ((0.7 - 3 * error + 0.01, 0), (0.7 - 3 * error - 0.01, 1)):
        part = {"clicks": 1, "auc": auc, "auc_drop_error": math.nan}
        gate = {**GATE, "slice_bounds": {}}
        assert len(_judge_compressed({}, part, gate=gate)) == failures


def test_the_error_of_a_drop_is_of_the_rows_of_the_slice():
    rng = np.random.default_rng(0)
    label = (rng.random(4000) < 0.3).astype(int)
    arrays = {
        "label": label,
        "ctr.uncollapsed": label + rng.normal(size=4000),
        "ctr.compressed": label + rng.normal(size=4000),
        "slice.C1": np.repeat(["a", "b"], [3600, 400]),
    }
    metrics = slice_metrics(arrays, ("compressed", "uncollapsed"), 1, ("compressed", "uncollapsed"))
    for key, rows in (((), slice(None)), (("C1", "a"), slice(3600)), (("C1", "b"), slice(3600, None))):
        one, other = (arrays[f"ctr.{model}"][rows] for model in ("compressed", "uncollapsed"))
        expected = auc_difference(label[rows], one, other)[1]
        assert metrics["compressed"][key]["auc_drop_error"] == pytest.approx(expected)
        assert "auc_drop_error" not in metrics["uncollapsed"][key]
    errors = [metrics["compressed"][key]["auc_drop_error"] for key in (("C1", "a"), ("C1", "b"))]
    assert errors[1] / errors[0] == pytest.approx(3, rel=0.3)  # Nine times fewer rows.


def test_small_slices_seldom_fail_by_chance():
    """A model that lost nothing but the order of some rows, in 100 slices of 300: without the allowance many fail."""
    rng = np.random.default_rng(0)
    label = (rng.random(30_000) < 0.3).astype(int)
    score = label + rng.normal(size=30_000)
    arrays = {
        "label": label,
        "ctr.uncollapsed": score + 0.3 * rng.normal(size=30_000),
        "ctr.compressed": score + 0.3 * rng.normal(size=30_000),
        "slice.C1": (np.arange(30_000) % 100).astype(str),
    }
    models = ("compressed", "uncollapsed")
    metrics = slice_metrics(arrays, models, 1, models)
    compressed, uncollapsed = (metrics[model] for model in models)
    gate = {**GATE, "bounds": {"calibration": {}, "normalized_entropy": {}}, "slice_bounds": {}}
    assert judge(compressed, uncollapsed, None, gate, "float32", 0.0005) == []
    without = {key: {**values, "auc_drop_error": 0.0} for key, values in compressed.items()}
    assert len(judge(without, uncollapsed, None, gate, "float32", 0.0005)) > 20
