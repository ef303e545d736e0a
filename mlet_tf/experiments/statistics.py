"""Means over seeds and paired differences with confidence intervals."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy import stats

from mlet_tf.experiments.cells import Cell

# Records are without the choices that there were not when they were stored.
_CELL = {field.name: getattr(Cell, field.name, None) for field in dataclasses.fields(Cell)}
_GROUP = ("study", "stage", *_CELL, "method", "truncated_to")


@dataclasses.dataclass(frozen=True)
class Group:
    """Results of one cell, or of one truncation of it, over its seeds.

    Attributes:
        record: The first record, which stands for all in everything but seed and metrics.
        values: Metrics by seed: `values["test"]["auc"][seed]`.
    """

    record: dict[str, Any]
    values: dict[str, dict[str, dict[int, float]]]

    @property
    def label(self) -> str:
        """Short name for tables and plots."""
        return label(self.record)

    def mean(self, metric: str = "auc", split: str = "test") -> float:
        """Mean over the seeds."""
        return float(np.mean(list(self.values[split][metric].values())))

    def interval(self, metric: str = "auc", split: str = "test") -> float:
        """Half width of the 95 % confidence interval of the mean (Student's t)."""
        return _half_width(np.array(list(self.values[split][metric].values())))

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
        for split in ("validation", "test", "test_rare"):
            for metric, value in record.get(split, {}).items():
                group.values.setdefault(split, {}).setdefault(metric, {})[record["seed"]] = value
    return list(found.values())


def difference(a: Group, b: Group, metric: str = "auc", split: str = "test") -> Difference:
    """Compares two groups, seed by seed.

    Raises:
        ValueError: They have fewer than two seeds in common.
    """
    left, right = a.values[split][metric], b.values[split][metric]
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
    for part, key in (("table", "table_l2"), ("projection", "projection_l2")):
        if record.get(key):
            parts.append(f"{part} L2 {record[key]:g}")
    parts += [f"{key}={value}" for key, value in dict(record.get("settings", ())).items()]
    if record["method"] is not None:
        parts.append(f"-> {record['truncated_to']} ({record['method']})")
    return " ".join(parts)


def _half_width(values: np.ndarray) -> float:
    if len(values) < 2:
        return float("nan")
    return float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
