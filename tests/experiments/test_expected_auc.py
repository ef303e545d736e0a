"""Accuracy as a regression test: mean AUC over seeds of small configurations, with a tolerance.

`expected_auc.json` holds the sweep and, for each of its results, the mean over the seeds when it was written and
the largest difference allowed: three times the standard error of the mean, at least 0.003.
"""

import json
from pathlib import Path

import pytest
import yaml

from mlet_tf.experiments.statistics import groups
from mlet_tf.experiments.store import read_records

EXPECTED = json.loads(Path(__file__).with_name("expected_auc.json").read_text())


@pytest.mark.slow
def test_small_configurations_reach_their_auc(tmp_path, command):
    config = tmp_path / "sweep.yaml"
    config.write_text(yaml.safe_dump({**EXPECTED["sweep"], "output": str(tmp_path / "out")}))
    code, _, err = command("sweep", "--config", config)
    assert code == 0, err
    found = {g.label: round(g.mean(), 4) for g in groups(read_records(tmp_path / "out" / "trials.jsonl"))}
    wrong = {
        name: (found.get(name), expected)
        for name, expected in EXPECTED["expected"].items()
        if name not in found or abs(found[name] - expected["auc"]) > expected["tolerance"]
    }
    assert not wrong, f"found and expected: {wrong}"
