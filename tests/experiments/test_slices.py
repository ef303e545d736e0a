"""Metrics by how often `train` has seen the id of each feature."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.experiments.data import PreparedData
from mlet_tf.experiments.slices import BANDS, by_frequency
from mlet_tf.experiments.trial import evaluate
from mlet_tf.features.packed_rows import PackedRows
from mlet_tf.metrics import ctr_metrics

# Rows of train for each id of a feature, the last three out of vocabulary, twice, and missing.
USER = [3000, 1000, 999, 100, 99, 10, 9, 1, 0, 700, 50, 3]


def packed(path, ids, label):
    """Rows without dense features."""
    words = np.concatenate([np.asarray(label, np.float32)[:, None].view(np.int32), ids], axis=1)
    words.astype(np.int32).tofile(path)
    return PackedRows(str(path), len(ids), 0, ids.shape[1])


def data_of(folder, counts, ids, label, oov_buckets=2):
    """Rows whose train ids occur as often as `counts` says, and the same test and validation rows."""
    train = [np.repeat(np.arange(len(c)), c) for c in counts.values()]
    splits = {"train": packed(folder / "train.bin", np.stack(train, axis=1), np.zeros(len(train[0])))}
    for name in ("validation", "test"):
        splits[name] = packed(folder / f"{name}.bin", ids, label)
    sizes = {feature: len(c) for feature, c in counts.items()}
    return PreparedData("digest", splits, sizes, oov_buckets, 10, None)


def drawn(rows, size, seed=0):
    """Ids, labels, and predictions of which many are equal."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, size, rows)
    label = (rng.random(rows) < 0.3).astype(np.float32)
    ctr = np.clip(np.round(0.2 * label + rng.random(rows) * 0.7, 2), 0.01, 0.99).astype(np.float32)
    return ids, label, ctr


def test_each_band_has_the_metrics_of_its_rows(tmp_path):
    counts = {"user": USER}
    ids, label, ctr = drawn(20_000, 12)
    data = data_of(tmp_path, counts, ids[:, None], label)
    found = by_frequency(data, "test", ctr)
    members = {
        "1000+": [0, 1],
        "100-999": [2, 3],
        "10-99": [4, 5],
        "1-9": [6, 7],
        "0": [8],
        "oov": [9, 10],  # However often train has them.
        "missing": [11],
    }
    assert set(found) == {"user"} and set(found["user"]) == set(members) == set(BANDS)
    for band, of_band in members.items():
        rows = np.isin(ids, of_band)
        expected = ctr_metrics(label[rows], ctr[rows])
        metrics = found["user"][band]
        assert metrics["rows"] == rows.sum()
        assert metrics["auc"] == pytest.approx(expected["auc"], abs=1e-6)
        assert metrics["logloss"] == pytest.approx(expected["logloss"], abs=1e-6)


@given(seed=st.integers(0, 1000), features=st.integers(1, 3), rows=st.integers(1, 3000))
@settings(deadline=None, max_examples=20)
def test_bands_divide_the_rows_of_every_feature(tmp_path_factory, seed, features, rows):
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(seed)
    counts = {}
    for number in range(features):
        shares = rng.dirichlet(np.full(8, 0.3))
        counts[f"f{number}"] = rng.multinomial(5000, shares)
    ids, label = rng.integers(0, 8, (rows, features)), rng.integers(0, 2, rows)
    data = data_of(folder, counts, ids, label, oov_buckets=1)
    found = by_frequency(data, "test", rng.random(rows).astype(np.float32))
    assert list(found) == list(counts)
    for number, (feature, count) in enumerate(counts.items()):
        band_of = ["0" if c == 0 else "1-9" if c < 10 else "10-99" if c < 100 else "100-999" for c in count]
        band_of = ["1000+" if c >= 1000 else band for c, band in zip(count, band_of, strict=True)]
        band_of[-2:] = ["oov", "missing"]
        of_row = np.array(band_of)[ids[:, number]]
        large = {
            band: (of_row == band).sum()
            for band in BANDS
            if (of_row == band).sum() >= 200 and 0 < label[of_row == band].mean() < 1
        }
        assert {band: metrics["rows"] for band, metrics in found[feature].items()} == large


def test_bands_that_say_nothing_are_left_out(tmp_path):
    ids = np.repeat([0, 1, 2, 3, 4], [500, 199, 200, 500, 500])
    label = np.arange(len(ids)) % 2
    label[ids == 3] = 1
    counts = {"user": [1000, 100, 10, 1, 5, 5]}
    data = data_of(tmp_path, counts, ids[:, None], label, oov_buckets=1)
    found = by_frequency(data, "test", np.full(len(ids), 0.5, np.float32))["user"]
    assert found == {
        "1000+": {"rows": 500, "auc": 0.5, "logloss": 0.693147},
        "10-99": {"rows": 200, "auc": 0.5, "logloss": 0.693147},
        "oov": {"rows": 500, "auc": 0.5, "logloss": 0.693147},
    }


def test_a_record_holds_them_for_test_rows_alone(tmp_path):
    counts = {"user": USER, "shop": [5971, 0, 0]}
    ids, label, ctr = drawn(2000, 12)
    data = data_of(tmp_path, counts, np.stack([ids, ids % 3], axis=1), label)
    record = evaluate(lambda rows: ctr, data, ("validation", "test"))
    assert set(record) == {"validation", "test", "test_rare", "test_by_frequency"}
    assert record["test_by_frequency"] == by_frequency(data, "test", ctr)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert "test_by_frequency" not in evaluate(lambda rows: ctr, data, ("validation",))
