"""What is known about a synthetic log from the true probabilities of its clicks."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TypedDict

import numpy as np

from mlet_tf import strict_json

_BINS = 1 << 14


@dataclasses.dataclass(frozen=True)
class TeacherReport:
    """What is known about a synthetic log; stored next to it as `<path>.teacher.json`.

    Args:
        schema: Name of the schema.
        rows: Rows written.
        ctr: Share of clicks in the file.
        auc: Expected AUC of the true probabilities, the best that any model can reach.
        logloss: Expected logloss of the true probabilities, the lowest that any model can reach.
        normalized_entropy: `logloss` divided by the entropy of the click-through rate.
        teacher: Arguments of the `Teacher`.
        intercept: The teacher's constant, chosen for the click-through rate wanted.
        vocabulary_sizes: Number of categories by feature.
        missing_shares: Share of missing values by raw column.
    """

    schema: str
    rows: int
    ctr: float
    auc: float
    logloss: float
    normalized_entropy: float
    teacher: dict[str, int | float]
    intercept: float
    vocabulary_sizes: dict[str, int]
    missing_shares: dict[str, float]

    @staticmethod
    def path_for(path: str | Path) -> Path:
        """Returns the path of a log's report."""
        return Path(f"{path}.teacher.json")

    @classmethod
    def read(cls, path: str | Path) -> TeacherReport:
        """Reads the report of the log at `path`."""
        return cls(**strict_json.read(cls.path_for(path)))


class ScoreValues(TypedDict):
    """What `TeacherReport` says of the rows, under the same names."""

    rows: int
    ctr: float
    auc: float
    logloss: float
    normalized_entropy: float


class Score:
    """AUC and logloss of true probabilities, from a histogram of them."""

    def __init__(self) -> None:
        self.rows = 0
        self._clicks = 0
        self._entropy = 0.0
        self._positive, self._negative = np.zeros(_BINS), np.zeros(_BINS)

    def add(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Adds rows."""
        p = probabilities
        self.rows += len(labels)
        self._clicks += int(labels.sum())
        self._entropy -= float(np.sum(p * np.log(p) + (1 - p) * np.log1p(-p)))
        # Logits of -20..20 fill the bins.
        bins = np.clip((np.log(p) - np.log1p(-p) + 20) * (_BINS / 40), 0, _BINS - 1).astype(np.int64)
        self._positive += np.bincount(bins, weights=p, minlength=_BINS)
        self._negative += np.bincount(bins, weights=1 - p, minlength=_BINS)

    def values(self) -> ScoreValues:
        """Returns the scores of all rows added."""
        positive, negative = self._positive.sum(), self._negative.sum()
        below = np.cumsum(self._negative) - 0.5 * self._negative
        rate = positive / self.rows
        logloss = self._entropy / self.rows
        return {
            "rows": self.rows,
            "ctr": self._clicks / self.rows,
            "auc": float(self._positive @ below / (positive * negative)),
            "logloss": logloss,
            "normalized_entropy": float(-logloss / (rate * math.log(rate) + (1 - rate) * math.log1p(-rate))),
        }
