"""The gate: which metrics of which slices keep a model from being pushed.

Where `gate.bounds` says nothing of a metric, these hold on all rows:

*   AUC above 0.5 by more than its standard error (Hanley and McNeil, 1982).
*   Normalised entropy below 1: a constant prediction of the mean CTR reaches 1.
*   Calibration within a factor of 1.1, and within three standard errors of the number of clicks, taken for a Poisson
    count: `|log(calibration)| <= log(1.1) + 3 / sqrt(clicks)`.

A metric of all rows that is not a number fails, whatever the bounds. In a slice that has clicks only, or none, AUC and
normalised entropy are not defined, and without clicks neither is calibration: those are not checked.

A collapsed model has to be as good as the uncollapsed one, in every slice. A compressed one may lose AUC: in every
slice as much as its budget says, and three standard errors of the difference of the two AUCs (DeLong et al., 1988), as
a slice with few clicks cannot show a smaller loss.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict

from mlet_tf import strict_json
from mlet_tf.metrics import METRICS, auc_standard_error
from mlet_tf.storage import join

GATE_FILE = "gate.json"

# A slice is `()` for all rows or one (column, value) pair.
Slice = tuple[()] | tuple[str, str]
Metrics = Mapping[Slice, Mapping[str, float]]

CALIBRATION_FACTOR = 1.1
CALIBRATION_ERRORS = 3.0
COMPRESSION_ERRORS = 3.0

_HIGHER_IS_BETTER = {"auc": True, "logloss": False, "normalized_entropy": False}


class GateRules(TypedDict):
    """The keys of the configuration's `gate` that a check reads, as plain values."""

    bounds: Mapping[str, Mapping[str, float | None]]
    slice_bounds: Mapping[str, Mapping[str, float | None]]
    max_auc_drop: float
    max_collapse_loss: float
    max_quantization_loss: float


@dataclasses.dataclass(frozen=True)
class Check:
    """A metric of a slice and what it should be.

    Attributes:
        metric: Name of the metric.
        slice: Text of the slice, `all rows` or `column=value`.
        value: The candidate's value; may be NaN.
        expected: What it should be, in words.
        min: Smallest value allowed; None where there is none.
        max: Largest value allowed; None where there is none.
        passed: Whether the value is as expected.
    """

    metric: str
    slice: str
    value: float
    expected: str
    min: float | None
    max: float | None
    passed: bool

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.metric} of {self.slice} is {self.value:.6g}, expected {self.expected}"


@dataclasses.dataclass(frozen=True)
class _Bound:
    """The range of a metric; `strict` leaves `max` itself out, `why` says where the range comes from."""

    min: float | None = None
    max: float | None = None
    strict: bool = False
    why: str = ""

    def sides(self, value: float) -> dict[str, bool]:
        """Each side in words, and whether it holds."""
        sides = {}
        if self.min is not None:
            sides[f"at least {self.min:g}"] = value >= self.min
        if self.max is not None and self.strict:
            sides[f"below {self.max:g}"] = value < self.max
        elif self.max is not None:
            sides[f"at most {self.max:g}"] = value <= self.max
        return sides


def slice_text(key: Slice) -> str:
    """A slice in words."""
    return f"{key[0]}={key[1]}" if key else "all rows"


def check_metrics(
    candidate: Metrics,
    uncollapsed: Metrics,
    last_blessed: Metrics | None,
    gate: GateRules,
    table_dtype: str = "float32",
    max_compression_drop: float | None = None,
) -> list[Check]:
    """Checks the candidate's metrics.

    Args:
        candidate: Metrics of the collapsed or compressed model by slice; each has `auc`, `logloss`, `calibration`,
            `normalized_entropy`, `rows` and `clicks`, those of a compressed one `auc_drop_error` too.
        uncollapsed: The same for the trained model.
        last_blessed: The same for the last blessed model, or None where there is none.
        gate: What the model must satisfy.
        table_dtype: Dtype of the candidate's tables.
        max_compression_drop: AUC that a compressed model may lose; None for one that is not compressed.

    Returns:
        All checks, passed and failed, those of all rows first.
    """
    bounds = _default_bounds(candidate[()]) | _configured(gate["bounds"])
    checks = list(_bounded(candidate[()], (), bounds))
    if last_blessed is not None:
        checks += _not_below(candidate[()], last_blessed[()], gate["max_auc_drop"])
    for key, metrics in candidate.items():
        if key:
            checks += _bounded(metrics, key, _configured(gate["slice_bounds"]))
        if max_compression_drop is not None:
            checks += _within_budget(metrics, uncollapsed[key], key, max_compression_drop)
            continue
        tolerance, cause = gate["max_collapse_loss"], "the collapse"
        if table_dtype != "float32":
            # Rounding averages out over rows, so the fewer there are the more it may cost.
            tolerance = gate["max_quantization_loss"] * math.sqrt(_rarer(candidate[()]) / _rarer(metrics))
            cause = f"collapse and quantisation to {table_dtype}"
        checks += _not_worse(metrics, uncollapsed[key], key, tolerance, cause)
    return checks


def write_gate(folder: str, metrics: Mapping[str, Metrics], checks: Sequence[Check]) -> None:
    """Writes `gate.json`: the verdict, every check, and the metrics of every model by slice.

    Args:
        folder: Where it goes.
        metrics: Metrics by model.
        checks: What `check_metrics` found.
    """
    results = {
        "blessed": all(check.passed for check in checks),
        "failures": [str(check) for check in checks if not check.passed],
        "checks": [dataclasses.asdict(check) for check in checks],
        "metrics": {
            model: [{"slice": list(key), **values} for key, values in by_slice.items()]
            for model, by_slice in metrics.items()
        },
    }
    strict_json.write(join(folder, GATE_FILE), results, indent=1)


def _default_bounds(metrics: Mapping[str, float]) -> dict[str, _Bound]:
    """Bounds of all rows where the configuration has none; none either where the labels leave metrics undefined."""
    clicks, rows = metrics["clicks"], metrics["rows"]
    if not 0 < clicks < rows:
        return {}
    error = auc_standard_error(metrics["auc"], clicks, rows - clicks)
    factor = CALIBRATION_FACTOR * math.exp(CALIBRATION_ERRORS / math.sqrt(clicks))
    allowance = (
        f"{CALIBRATION_FACTOR - 1:.0%} and {CALIBRATION_ERRORS:g} standard errors of {clicks:,} clicks"
    )
    return {
        "auc": _Bound(min=0.5 + error, why=f"0.5 and its standard error, {error:.2g}"),
        "calibration": _Bound(1 / factor, factor, why=allowance),
        "normalized_entropy": _Bound(
            max=1.0, strict=True, why="what the mean CTR as a constant prediction reaches"
        ),
    }


def _configured(bounds: Mapping[str, Mapping[str, float | None]]) -> dict[str, _Bound]:
    return {metric: _Bound(bound.get("min"), bound.get("max")) for metric, bound in bounds.items()}


def _bounded(metrics: Mapping[str, float], key: Slice, bounds: Mapping[str, _Bound]) -> Iterator[Check]:
    """A check for each metric that is bounded or not a number."""
    for metric in METRICS:
        value, bound = metrics[metric], bounds.get(metric, _Bound())
        if math.isnan(value):
            cause = _undefined(metric, metrics)
            if not (key and cause):
                text = f"a number ({cause or 'the predictions are not numbers'})"
                yield Check(metric, slice_text(key), value, text, None, None, passed=False)
        elif sides := bound.sides(value):
            failed = [side for side, holds in sides.items() if not holds]
            text = " and ".join(failed or sides) + (f" ({bound.why})" if bound.why else "")
            yield Check(metric, slice_text(key), value, text, bound.min, bound.max, not failed)


def _undefined(metric: str, metrics: Mapping[str, float]) -> str | None:
    """What about the labels leaves a metric undefined, if anything does."""
    if metric == "logloss":
        return None
    if metrics["clicks"] == 0:
        return "all labels are 0"
    if metrics["clicks"] == metrics["rows"] and metric != "calibration":
        return "all labels are 1"
    return None


def _not_below(metrics: Mapping[str, float], last: Mapping[str, float], max_drop: float) -> Iterator[Check]:
    """AUC of all rows against the last blessed model's, where both are numbers."""
    floor = last["auc"] - max_drop
    if not math.isnan(floor) and not math.isnan(metrics["auc"]):
        text = f"at least {floor:.6g} (the last blessed model has {last['auc']:.6g})"
        yield Check("auc", slice_text(()), metrics["auc"], text, floor, None, metrics["auc"] >= floor)


def _not_worse(
    metrics: Mapping[str, float], other: Mapping[str, float], key: Slice, tolerance: float, cause: str
) -> Iterator[Check]:
    """What is no number is left to `_bounded`, unless it was one before."""
    for metric, higher_is_better in _HIGHER_IS_BETTER.items():
        value, before = metrics[metric], other[metric]
        if math.isnan(value) and math.isnan(before):
            continue
        allowed = tolerance
        if metric == "auc":
            # Rounding may swap a pair of rows; among few rows one pair weighs more than the tolerance.
            allowed = max(tolerance, 2 / max(1, metrics["clicks"] * (metrics["rows"] - metrics["clicks"])))
        passed = (before - value if higher_is_better else value - before) <= allowed
        low, high = (before - allowed, None) if higher_is_better else (None, before + allowed)
        text = f"{before:.8g} as before {cause}, within {allowed:.2g}"
        yield Check(metric, slice_text(key), value, text, low, high, passed)


def _within_budget(
    metrics: Mapping[str, float], other: Mapping[str, float], key: Slice, max_drop: float
) -> Iterator[Check]:
    """AUC against the uncollapsed model's; what is no number is left to `_bounded`, unless it was one before."""
    value, before = metrics["auc"], other["auc"]
    if math.isnan(value) and math.isnan(before):
        return
    error = metrics["auc_drop_error"]
    if _rarer(metrics) < 2:
        # One click has no variance; the error of the AUC itself is more than that of a difference.
        error = auc_standard_error(before, metrics["clicks"], metrics["rows"] - metrics["clicks"])
    noise = COMPRESSION_ERRORS * error
    floor = before - max_drop - noise
    text = (
        f"at least {floor:.6g} ({before:.6g} before the compression, less {max_drop:g} and "
        f"{COMPRESSION_ERRORS:g} standard errors of the difference, {noise:.2g})"
    )
    yield Check("auc", slice_text(key), value, text, floor, None, value >= floor)


def _rarer(metrics: Mapping[str, float]) -> float:
    """Clicks or other rows, whichever are fewer, which is what a metric's noise depends on; at least 1."""
    return max(1, min(metrics["clicks"], metrics["rows"] - metrics["clicks"]))
