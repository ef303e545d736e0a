"""The direct table that a compressed model is measured against."""

import json
from pathlib import Path

import hypothesis.strategies as st
import keras
import numpy as np
import tensorflow as tf
from hypothesis import given
from mlet_tf.components.baseline_trainer.component import BaselineTrainer
from tfx import types
from tfx.types import standard_artifacts
from tfx.types.experimental import simple_artifacts

from mlet_tf.config import load_config
from mlet_tf.datasets import CRITEO
from mlet_tf.export import load_keras_model
from mlet_tf.training.baseline import baseline_size


@given(
    rows=st.dictionaries(st.text(), st.integers(1, 10**6), min_size=1, max_size=5),
    allowed=st.integers(0, 10**9),
)
def test_as_many_columns_as_fit(rows, allowed):
    size = baseline_size(rows, allowed)
    column = 4 * sum(rows.values())
    assert size["bytes"] == size["output_dim"] * column and size["allowed_bytes"] == allowed
    assert size["output_dim"] >= 1 and size["bytes"] + column > allowed
    assert size["bytes"] <= allowed or size["output_dim"] == 1


def _artifact(kind, uri):
    artifact = kind()
    artifact.uri = str(uri)
    return artifact


def test_the_component_trains_what_the_trainer_does_with_narrow_direct_tables(finished_run, tmp_path):
    """With as many bytes as two columns and a bit take; its MLPs, rows and epochs are the run's."""
    artifacts = finished_run.result["artifacts"]
    trained = load_keras_model(artifacts["uncollapsed_model"])
    rows = trained_rows(trained)
    (tmp_path / "report").mkdir()
    report = {"bytes_after": {"rows": 4 * 2 * rows + 5, "addresses": 2, "vocabulary": 10**9}}
    (tmp_path / "report" / "compression.json").write_text(json.dumps(report))
    config = load_config(finished_run.config, finished_run.overrides())
    custom_config = {
        "schema": CRITEO.to_dict(),
        "model": config.model.to_plain(),
        "train": config.train.to_plain(),
        "vocabulary": config.vocabulary.to_plain(),
        "work": str(tmp_path / "work"),
    }
    channels = {
        "examples": standard_artifacts.Examples,
        "transform_graph": standard_artifacts.TransformGraph,
        "compression": simple_artifacts.Metrics,
    }
    node = BaselineTrainer(
        **{name: types.Channel(type=kind) for name, kind in channels.items()}, custom_config=custom_config
    )
    examples = _artifact(standard_artifacts.Examples, artifacts["examples"])
    examples.split_names = '["train", "eval"]'
    model = _artifact(standard_artifacts.Model, tmp_path / "model")
    node.executor_spec.executor_class().Do(
        {
            "examples": [examples],
            "transform_graph": [_artifact(standard_artifacts.TransformGraph, artifacts["transform_graph"])],
            "compression": [_artifact(simple_artifacts.Metrics, tmp_path / "report")],
        },
        {"model": [model], "model_run": [_artifact(standard_artifacts.ModelRun, tmp_path / "run")]},
        dict(node.exec_properties),
    )
    size = json.loads((tmp_path / "model" / "baseline.json").read_text())
    assert size == {"output_dim": 2, "bytes": 4 * 2 * rows, "allowed_bytes": 4 * 2 * rows + 7}
    baseline = load_keras_model(model.uri)
    assert trained_rows(baseline) == rows
    assert sum(np.prod(table.shape) for table in tables(baseline)) == 2 * rows
    kernels = [
        [w.shape for w in m.weights if "kernel" in w.path and w.shape[-1] == 16] for m in (baseline, trained)
    ]
    assert len(kernels[0]) == len(kernels[1]) > 0
    history = json.loads((tmp_path / "model" / "history.json").read_text())
    assert [record["epoch"] for record in history] == [1, 2]
    assert (tmp_path / "model" / "Format-Serving" / "saved_model.pb").exists()
    assert tf.io.gfile.glob(str(tmp_path / "run" / "tensorboard" / "*"))
    assert list(Path(tmp_path / "work").glob("*/checkpoints"))  # From which a killed training goes on.


def tables(model: keras.Model) -> list[keras.Variable]:
    (collection,) = (layer for layer in model._flatten_layers() if hasattr(layer, "table_rows"))
    return collection.tables


def trained_rows(model: keras.Model) -> int:
    """Rows of all tables together."""
    (collection,) = (layer for layer in model._flatten_layers() if hasattr(layer, "table_rows"))
    return sum(feature.input_dim for feature in collection.features)
