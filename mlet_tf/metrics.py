"""Metrics of CTR predictions, exact, in NumPy."""

from typing import get_args

import numpy as np
import numpy.typing as npt

from mlet_tf.names import Metric

METRICS: tuple[Metric, ...] = get_args(Metric)

_EPSILON = 1e-7  # Predictions are kept this far from 0 and 1, as Keras and TFMA do.


def ctr_metrics(label: npt.ArrayLike, ctr: npt.ArrayLike) -> dict[str, float]:
    """AUC, logloss, calibration and normalised entropy of predictions.

    Args:
        label: 0 or 1, `[N]`.
        ctr: Predicted click probabilities, `[N]`.

    Returns:
        `auc`: area under the ROC curve, ties counted half (Mann-Whitney); `logloss`: mean cross-entropy
        in nats; `calibration`: mean prediction over mean label; `normalized_entropy`: logloss over that
        of always predicting the mean label (He et al., 2014, "Practical lessons from predicting clicks
        on ads at Facebook"). Metrics that are undefined for these labels are NaN.
    """
    label = np.asarray(label, np.float64)
    ctr = np.asarray(ctr, np.float64)
    if label.shape != ctr.shape or label.ndim != 1:
        raise ValueError(f"`label` and `ctr` should be [N]. Received: shapes {label.shape} and {ctr.shape}")
    if not len(label):
        return dict.fromkeys(METRICS, float("nan"))
    loss = logloss(label, ctr)
    mean = label.mean()
    entropy = logloss(label, np.full_like(label, mean)) if 0 < mean < 1 else float("nan")
    return {
        "auc": auc(label, ctr),
        "logloss": loss,
        "calibration": float(ctr.mean() / mean) if mean > 0 else float("nan"),
        "normalized_entropy": loss / entropy,
    }


def auc(label: np.ndarray, ctr: np.ndarray) -> float:
    """Area under the ROC curve; NaN where all labels are the same. Shapes `[N]`."""
    positive = label > 0.5
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    rank_sum = _mid_ranks(ctr)[positive].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def auc_standard_error(auc: float, positives: float, negatives: float) -> float:
    """Standard error of an area under the ROC curve.

    The estimate of Hanley and McNeil, "The meaning and use of the area under a receiver operating characteristic (ROC)
    curve", Radiology 143(1), 1982. At 0.5 it is that of the Mann-Whitney statistic of equal distributions.

    Args:
        auc: The area, from 0 to 1; NaN gives NaN.
        positives: Rows with label 1, at least 1.
        negatives: Rows with label 0, at least 1.
    """
    two_positives = auc / (2 - auc)  # The chance that two positives both rank above one negative.
    two_negatives = 2 * auc**2 / (1 + auc)
    variance = (
        auc * (1 - auc)
        + (positives - 1) * (two_positives - auc**2)
        + (negatives - 1) * (two_negatives - auc**2)
    ) / (positives * negatives)
    # Rounding may make it negative if all pairs are in order.
    return float(np.sqrt(np.maximum(variance, 0.0)))


def auc_difference(label: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Returns how much larger the first AUC is than the second on the same rows, and the standard error of that.

    The estimate of DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver
    operating characteristic curves: a nonparametric approach", Biometrics 44(3), 1988, by ranks as in Sun and Xu, "Fast
    implementation of DeLong's algorithm for comparing the areas under correlated receiver operating characteristic
    curves", IEEE Signal Processing Letters 21(11), 2014.

    Args:
        label: 0 or 1, `[N]`.
        one: Predicted click probabilities of a model, `[N]`.
        other: Those of another.

    Returns:
        The difference and its standard error; NaN where all labels are the same, and for the error where there are not
        two rows of each label.
    """
    positive = np.asarray(label) > 0.5
    above = [_shares_below(positive, np.asarray(ctr)) for ctr in (one, other)]
    if not positive.any() or positive.all():
        return float("nan"), float("nan")
    difference = above[0] - above[1]
    groups = difference[positive], difference[~positive]
    if min(map(len, groups)) < 2:
        return float(groups[0].mean()), float("nan")
    variance = sum(values.var(ddof=1) / len(values) for values in groups)
    return float(groups[0].mean()), float(np.sqrt(variance))


def _shares_below(positive: np.ndarray, ctr: np.ndarray) -> np.ndarray:
    """Share of the rows with the other label that a row with a click is above, or another one below, ties half."""
    ranks = _mid_ranks(ctr)
    shares = np.empty(len(ctr))
    for own in (positive, ~positive):
        others = max(1, len(ctr) - int(own.sum()))
        below = (ranks[own] - _mid_ranks(ctr[own])) / others
        shares[own] = below if own is positive else 1 - below
    return shares


def _mid_ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value from 1, ties their mean."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def logloss(label: np.ndarray, ctr: np.ndarray) -> float:
    """Mean cross-entropy in nats. Shapes `[N]`."""
    ctr = np.clip(ctr, _EPSILON, 1 - _EPSILON)
    return float(-np.mean(label * np.log(ctr) + (1 - label) * np.log1p(-ctr)))
