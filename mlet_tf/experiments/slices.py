"""Metrics of a model by how often `train` has seen the ids of each feature."""

from __future__ import annotations

import numpy as np

from mlet_tf.experiments.data import PreparedData
from mlet_tf.metrics import auc, logloss

# By rows of `train` for the ids of a vocabulary. Values out of it and missing ones are apart however many they are,
# as in the pipeline's frequency slices.
BANDS = ("0", "1-9", "10-99", "100-999", "1000+", "oov", "missing")
_EDGES = (1, 10, 100, 1000)
_MIN_ROWS = 200  # An AUC of fewer says nothing.

ByFrequency = dict[str, dict[str, dict[str, float]]]


def by_frequency(data: PreparedData, split: str, ctr: np.ndarray) -> ByFrequency:
    """Metrics by feature and frequency band.

    Args:
        data: The rows.
        split: Name of a split.
        ctr: Predicted click probabilities of its rows, `[N]`.

    Returns:
        `{feature: {band: {"rows", "auc", "logloss"}}}`, bands out of `BANDS`; those with few rows or with one class
        are left out.
    """
    rows = data.splits[split]
    # In order of the prediction, so that the sort within each AUC finds its rows sorted.
    order = np.argsort(ctr, kind="stable")
    ctr, label = ctr[order].astype(np.float64), rows.label[order].astype(np.float64)
    result: ByFrequency = {}
    for number, (feature, counts) in enumerate(zip(data.table_rows, data.counts(), strict=True)):
        of_row = _band_of_ids(counts, data.oov_buckets)[rows.sparse_features[order, number]]
        bands = {
            band: _metrics(label[of_row == code], ctr[of_row == code]) for code, band in enumerate(BANDS)
        }
        result[feature] = {band: metrics for band, metrics in bands.items() if metrics}
    return result


def _band_of_ids(counts: np.ndarray, oov_buckets: int) -> np.ndarray:
    """Index into `BANDS` of each id, uint8 `[V]`: values of the vocabulary, OOV buckets, missing."""
    bands = np.searchsorted(_EDGES, counts, side="right").astype(np.uint8)
    bands[-1 - oov_buckets :] = BANDS.index("oov")
    bands[-1] = BANDS.index("missing")
    return bands


def _metrics(label: np.ndarray, ctr: np.ndarray) -> dict[str, float]:
    """`rows`, `auc` and `logloss`; empty where they say nothing."""
    clicks = int(label.sum())
    if len(label) < _MIN_ROWS or clicks in (0, len(label)):
        return {}
    return {"rows": len(label), "auc": round(auc(label, ctr), 6), "logloss": round(logloss(label, ctr), 6)}
