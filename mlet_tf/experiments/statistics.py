"""Means over seeds and paired differences with confidence intervals."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

import numpy as np
from scipy import stats

from mlet_tf.experiments.cells import Cell
from mlet_tf.training.learned import Fault

# Records are without the choices that there were not when they were stored.
_CELL = {field.name: getattr(Cell, field.name, None) for field in dataclasses.fields(Cell)}
_GROUP = ("study", "stage", *_CELL, "method", "truncated_to")
FAULTS: tuple[Fault, ...] = get_args(Fault)  # Marks of records whose training has learned nothing.
_SHORT = {"train.tables.l2": "table L2", "train.projections.l2": "projection L2"}


# Rows that metrics are of: `validation`, `test`, `test_rare`, or the test rows of a (feature, frequency band).
Split = str | tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Group:
    """Results of one cell, or of one truncation of it, over its seeds.

    Attributes:
        record: The first record, which stands for all in everything but seed and metrics.
        values: Metrics by seed, of those that have learned: `values["test"]["auc"][seed]`.
        faults: Of the other seeds, which of `FAULTS` they are: `faults[seed]`.
    """

    record: dict[str, Any]
    values: dict[Split, dict[str, dict[int, float]]]
    faults: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """Short name for tables and plots."""
        return label(self.record)

    @property
    def fault(self) -> str:
        """The seeds that are left out of all means, `constant (2 of 5)`; empty if there are none."""
        seeds = len(self.faults) + len(self.by_seed())
        counts = {fault: list(self.faults.values()).count(fault) for fault in FAULTS}
        return ", ".join(f"{fault} ({count} of {seeds})" for fault, count in counts.items() if count)

    def by_seed(self, metric: str = "auc", split: Split = "test") -> dict[int, float]:
        """A metric by seed; empty where it was not measured."""
        return self.values.get(split, {}).get(metric, {})

    def bands(self) -> list[tuple[str, str]]:
        """The pairs of feature and frequency band that test rows were scored by."""
        return [split for split in self.values if isinstance(split, tuple)]

    def mean(self, metric: str = "auc", split: Split = "test") -> float:
        """Mean over the seeds; NaN without any."""
        values = list(self.by_seed(metric, split).values())
        return float(np.mean(values)) if values else math.nan

    def interval(self, metric: str = "auc", split: Split = "test") -> float:
        """Half width of the 95 % confidence interval of the mean (Student's t)."""
        return _half_width(np.array(list(self.by_seed(metric, split).values())))

    def matches(self, **wanted: Any) -> bool:
        """Whether the records have these values."""
        return all(self.record.get(key) == value for key, value in wanted.items())


@dataclasses.dataclass(frozen=True)
class Difference:
    """A paired difference over seeds.

    Attributes:
        mean: Mean of `a - b`.
        low: Lower end of its 95 % confidence interval (Student's t on the differences).
        high: Upper end.
        seeds: Number of seeds that both have.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def groups(records: Iterable[Mapping[str, Any]]) -> list[Group]:
    """Groups the records of final and control trials that differ in the seed alone."""
    found: dict[str, Group] = {}
    for record in records:
        if record["stage"] == "tune":
            continue
        whole = _CELL | dict(record)
        group = found.setdefault(json.dumps([whole.get(key) for key in _GROUP]), Group(whole, {}))
        fault = next((fault for fault in FAULTS if record.get(fault)), None)
        if fault:
            group.faults[record["seed"]] = fault
            continue
        for split, metrics in _metrics(record):
            for metric, value in metrics.items():
                group.values.setdefault(split, {}).setdefault(metric, {})[record["seed"]] = value
    return list(found.values())


def _metrics(record: Mapping[str, Any]) -> Iterator[tuple[Split, Mapping[str, float]]]:
    for split in ("validation", "test", "test_rare"):
        yield split, record.get(split, {})
    for feature, bands in record.get("test_by_frequency", {}).items():
        for band, metrics in bands.items():
            yield (feature, band), metrics


def difference(a: Group, b: Group, metric: str = "auc", split: Split = "test") -> Difference:
    """Compares two groups, seed by seed.

    Raises:
        ValueError: They have fewer than two seeds in common.
    """
    left, right = a.by_seed(metric, split), b.by_seed(metric, split)
    seeds = sorted(left.keys() & right.keys())
    if len(seeds) < 2:
        raise ValueError(f"`a` and `b` should have two seeds in common. Received: {seeds}")
    differences = np.array([left[seed] - right[seed] for seed in seeds])
    mean, half = float(differences.mean()), _half_width(differences)
    return Difference(mean, mean - half, mean + half, len(seeds))


def label(record: Mapping[str, Any]) -> str:
    """Returns a short name of a record's cell."""
    name = "direct_rescaled" if record["stage"] == "control" else record["kind"]
    scale = record.get("hidden_scale")
    parts = [name, f"d={record['output_dim']}"]
    if record["hidden_dim"] is not None:
        parts.append(
            f"k={record['hidden_dim']}" if scale is None else f"k={scale:g}√V<={record['hidden_dim']}"
        )
    if record["initialization"] not in (None, "fixed_variance"):
        parts.append(record["initialization"])
    if record["optimizer"] != "adagrad":
        parts.append(record["optimizer"])
    if record.get("dtype", "float32") != "float32":
        parts.append(record["dtype"])
    if record.get("collapse_at") is not None:
        parts.append(f"collapsed at {record['collapse_at']:g}")
    for key, value in dict(record.get("settings", ())).items():
        parts.append(f"{_SHORT[key]} {value:g}" if key in _SHORT else f"{key}={value}")
    if record["method"] is not None:
        parts.append(f"-> {record['truncated_to']} ({record['method']})")
    return " ".join(parts)


def _half_width(values: np.ndarray) -> float:
    if len(values) < 2:
        return float("nan")
    return float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
