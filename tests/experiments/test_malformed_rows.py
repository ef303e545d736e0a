"""A sweep leaves malformed rows out of all of its passes over the log, and says so."""

import json

import numpy as np
import pytest

from mlet_tf.config import from_mapping
from mlet_tf.config.sweep import SweepConfig
from mlet_tf.errors import InputError
from mlet_tf.experiments.preparation import prepare
from mlet_tf.experiments.splits import SPLITS


def test_a_row_that_only_the_features_reject_is_not_counted_and_told(tmp_path):
    schema = {"name": "shop", "label": "y", "integers": ["i"], "categoricals": ["c"]}
    (tmp_path / "shop.yaml").write_text(json.dumps(schema))
    lines = [f"{n % 2}\t{n + 1}\tc{n % 5}" for n in range(2000)]
    lines[7] = "1\tseven\tc0"
    (tmp_path / "log.tsv").write_text("\n".join(lines))
    rows = {"train": str(tmp_path / "log.tsv"), "schema": str(tmp_path / "shop.yaml")}
    config = from_mapping(SweepConfig, {"name": "s", "output": "s", "data": rows, "sweep": {"grid": [{}]}})
    told = []
    data = prepare(config, tmp_path / "data", told.append)
    rows = [data.splits[split] for split in SPLITS]
    assert sum(part.rows for part in rows) == 1999
    # An integer of at least 1 has a positive logarithm: no row of zeros was left unwritten.
    assert min(part.dense_features[:, 0].min() for part in rows) > 0
    assert sum(part.label.sum() for part in rows) == np.sum(np.arange(2000) % 2) - 1
    assert any(
        line.startswith("1 of 2,000 rows are malformed and left out; the first one is ")
        and line.endswith("log.tsv:8: column 'i' should be an integer. Received: 'seven'")
        for line in told
    )


def test_a_sweep_stops_at_the_share_of_malformed_rows_that_stops_a_run(tmp_path):
    (tmp_path / "shop.yaml").write_text(json.dumps({"name": "shop", "label": "y", "categoricals": ["c"]}))
    (tmp_path / "log.tsv").write_text("1\ta\n0\tb\nx\ta\n1\tb\n" * 25)
    rows = {"train": str(tmp_path / "log.tsv"), "schema": str(tmp_path / "shop.yaml")}
    document = {"name": "s", "output": "s", "sweep": {"grid": [{}]}}
    with pytest.raises(InputError, match="25 of 100 rows"):
        prepare(from_mapping(SweepConfig, document | {"data": rows}), tmp_path / "data")
    config = from_mapping(SweepConfig, document | {"data": rows | {"max_reject_share": 0.25}})
    assert sum(part.rows for part in prepare(config, tmp_path / "data").splits.values()) == 75
