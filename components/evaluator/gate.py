"""The gate: which metrics of which slices keep a model from being pushed."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

# A slice is `()` for all rows or one (column, value) pair.
Slice = tuple[()] | tuple[str, str]
Metrics = Mapping[Slice, Mapping[str, float]]

_HIGHER_IS_BETTER = {"auc": True, "logloss": False, "normalized_entropy": False}


@dataclasses.dataclass(frozen=True)
class Failure:
    """One reason not to bless a model.

    Attributes:
        metric: Name of the metric.
        slice: Text of the slice, `all rows` or `column=value`.
        value: The candidate's value.
        expected: What it should be, in words.
    """

    metric: str
    slice: str
    value: float
    expected: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.metric} of {self.slice} is {self.value:.6g}, expected {self.expected}"


def slice_text(key: Slice) -> str:
    """A slice in words."""
    return f"{key[0]}={key[1]}" if key else "all rows"


def judge(
    candidate: Metrics,
    uncollapsed: Metrics,
    last_blessed: Metrics | None,
    gate: Mapping[str, Any],
    table_dtype: str = "float32",
) -> list[Failure]:
    """Checks the candidate's metrics.

    Args:
        candidate: Metrics of the collapsed model by slice; each has `auc`, `logloss`, `calibration`,
            `normalized_entropy`, `rows` and `clicks`.
        uncollapsed: The same for the trained model.
        last_blessed: The same for the last blessed model, or None where there is none.
        gate: The configuration's `gate`.
        table_dtype: Dtype of the candidate's tables.

    Returns:
        The failures, empty for a pass.
    """
    quantized = table_dtype != "float32"
    cause = f"collapse and quantisation to {table_dtype}" if quantized else "the collapse"
    failures = list(_bounds(candidate[()], (), gate["bounds"]))
    for key, metrics in candidate.items():
        if key:
            failures += _bounds(metrics, key, gate["slice_bounds"])
        tolerance = gate["max_collapse_loss"]
        if quantized:
            # Rounding averages out over rows, so the fewer there are the more it may cost.
            tolerance = gate["max_quantization_loss"] * math.sqrt(_rarer(candidate[()]) / _rarer(metrics))
        failures += _not_worse(metrics, uncollapsed[key], key, tolerance, cause)
    if last_blessed is not None:
        floor = last_blessed[()]["auc"] - gate["max_auc_drop"]
        if not candidate[()]["auc"] >= floor:
            text = f"at least {floor:.6g} (the last blessed model has {last_blessed[()]['auc']:.6g})"
            failures.append(Failure("auc", slice_text(()), candidate[()]["auc"], text))
    return failures


def _rarer(metrics: Mapping[str, float]) -> float:
    """Clicks or other rows, whichever are fewer, which is what a metric's noise depends on; at least 1."""
    return max(1, min(metrics["clicks"], metrics["rows"] - metrics["clicks"]))


def _bounds(
    metrics: Mapping[str, float], key: Slice, bounds: Mapping[str, Mapping[str, Any]]
) -> Iterator[Failure]:
    for metric, bound in bounds.items():
        value, low, high = metrics[metric], bound.get("min"), bound.get("max")
        if math.isnan(value) and key:
            continue  # A slice without clicks, or with clicks only, has no AUC.
        if low is not None and not value >= low:
            yield Failure(metric, slice_text(key), value, f"at least {low:g}")
        if high is not None and not value <= high:
            yield Failure(metric, slice_text(key), value, f"at most {high:g}")


def _not_worse(
    metrics: Mapping[str, float], other: Mapping[str, float], key: Slice, tolerance: float, cause: str
) -> Iterator[Failure]:
    for metric, higher_is_better in _HIGHER_IS_BETTER.items():
        loss = other[metric] - metrics[metric] if higher_is_better else metrics[metric] - other[metric]
        allowed = tolerance
        if metric == "auc":
            # Rounding may swap a pair of rows; among few rows one pair weighs more than the tolerance.
            pairs = metrics["clicks"] * (metrics["rows"] - metrics["clicks"])
            allowed = max(tolerance, 2 / pairs) if pairs else math.inf
        if loss > allowed or math.isnan(metrics[metric]) != math.isnan(other[metric]):
            text = f"{other[metric]:.8g} as before {cause}, within {allowed:.2g}"
            yield Failure(metric, slice_text(key), metrics[metric], text)
