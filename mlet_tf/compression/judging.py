"""The AUC that a compression costs, on rows that did not choose the plan."""

from typing import TypedDict

import numpy as np

from mlet_tf.compression.report import CompressionReport
from mlet_tf.metrics import auc, auc_difference


class Judgement(TypedDict):
    """AUC of a model before and after the compression.

    Attributes:
        rows: Number of rows.
        auc_before: AUC before.
        auc_after: AUC after.
        auc_drop: By how much it is less.
        auc_drop_error: Standard error of that, see `mlet_tf.metrics.auc_difference`.
    """

    rows: int
    auc_before: float
    auc_after: float
    auc_drop: float
    auc_drop_error: float


class JudgedReport(CompressionReport):
    """A report with what was found on rows that did not choose; None where there are none."""

    judged: Judgement | None


def judge(label: np.ndarray, before: np.ndarray, after: np.ndarray) -> Judgement:
    """Compares predictions.

    Args:
        label: 0 or 1, `[N]`.
        before: Click probabilities of the model before, `[N]`.
        after: Click probabilities of the compressed model, `[N]`.
    """
    drop, error = auc_difference(label, before, after)
    return {
        "rows": len(label),
        "auc_before": auc(label, before),
        "auc_after": auc(label, after),
        "auc_drop": drop,
        "auc_drop_error": error,
    }
