"""Whether a model has learned anything: its predictions against those of a constant.

A model is `constant` if nothing in its predictions tells the labels of rows that it was not trained on:

*   Its AUC is within 3 standard errors of 0.5. The standard error of the AUC of predictions that do not depend on the
    label is `sqrt((P + N + 1) / (12 P N))` for P rows with label 1 and N with label 0 (Hanley and McNeil, "The meaning
    and use of the area under a receiver operating characteristic (ROC) curve", Radiology 143(1), 1982).
*   Its normalised entropy is not below `1 - 9 / (2 n H)`, where n is the number of rows and H the entropy of the mean
    label in nats. A constant reaches 1. What predictions that do not depend on the label gain by chance is
    `2 n H (1 - NE)`, and at most a chi-squared variable of one degree of freedom even if they were scaled to suit the
    labels (Wilks, "The large-sample distribution of the likelihood ratio for testing composite hypotheses", Annals of
    Mathematical Statistics 9(1), 1938): 9 is again 3 standard errors.

Where 3 standard errors of the AUC are more than 0.05, as with some hundred rows, too little is known, and the model
passes. It is `diverged` if its predictions are not numbers.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from mlet_tf.metrics import auc_standard_error, ctr_metrics, logloss

Fault = Literal["constant", "diverged"]

_ERRORS = 3.0
_LARGEST_ERROR = 0.05
_REMEDIES = (
    "raise 'train.tables.learning_rate' and 'train.dense.learning_rate', lower 'initial_accumulator', raise "
    "'model.initial_scale', or let dot products into the logit with 'model.dot_skip'"
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the predictions show.

    Attributes:
        fault: What is wrong with them, None if they have something to say about the labels.
        auc: AUC.
        normalized_entropy: Normalised entropy.
        rows: Rows that were judged.
    """

    fault: Fault | None
    auc: float
    normalized_entropy: float
    rows: int

    def __str__(self) -> str:
        """What is wrong, and what may help, as the end of a sentence about the model."""
        if self.fault == "diverged":
            return f"predicts values that are no numbers on {self.rows:,} rows: lower the learning rates in 'train'"
        found = (
            f"AUC {self.auc:.4f} and normalised entropy {self.normalized_entropy:.4f} on {self.rows:,} rows"
        )
        if self.fault is None:
            return f"has {found}"
        return (
            f"is as good as a constant, its predictions hardly differ between rows with a click and others ({found}): "
            f"{_REMEDIES}"
        )


def judge_predictions(label: np.ndarray, ctr: np.ndarray) -> Verdict:
    """Judges predictions for rows that the model was not trained on.

    Args:
        label: 0 or 1, `[N]`.
        ctr: Predicted click probabilities, `[N]`.
    """
    found = ctr_metrics(label, ctr)
    return judge(label, found["auc"], found["logloss"])


def judge(label: np.ndarray, auc: float, loss: float) -> Verdict:
    """Judges the metrics of predictions, see `judge_predictions`.

    Args:
        label: 0 or 1, `[N]`.
        auc: Their AUC.
        loss: Their logloss in nats.
    """
    rows, positives = len(label), int(np.sum(label > 0.5))
    negatives = rows - positives
    entropy = logloss(label, np.full(rows, positives / rows)) if positives and negatives else math.nan
    return Verdict(_fault(auc, loss, positives, negatives, entropy), auc, loss / entropy, rows)


def _fault(auc: float, loss: float, positives: int, negatives: int, entropy: float) -> Fault | None:
    if not positives or not negatives:
        return None  # Neither metric is defined.
    if math.isnan(loss):
        return "diverged"
    error = _ERRORS * auc_standard_error(0.5, positives, negatives)
    gained = 2 * (positives + negatives) * (entropy - loss)
    told = abs(auc - 0.5) > error or gained > _ERRORS**2
    return None if told or error > _LARGEST_ERROR else "constant"
