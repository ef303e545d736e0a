"""A compiled pipeline."""

from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIG

IMAGE = "registry.example/mlet-tf:1"
PIPELINE_ROOT = "gs://bucket/root"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory, little_log) -> "Compiled":
    """The pipeline of the shared run, compiled, with values that a run has to change to do the same."""
    from mlet_tf.pipeline.kubeflow_runner import compile_pipeline

    from mlet_tf.config import load_config

    folder = tmp_path_factory.mktemp("kubeflow")
    config = folder / "little.yaml"
    config.write_text(CONFIG)
    overrides = [
        f"data.train=/nowhere/{little_log.name}",
        f"serving.push_to={folder / 'serving'}",
        f"kubeflow.image={IMAGE}",
        f"kubeflow.pipeline_root={PIPELINE_ROOT}",
        f"kubeflow.work={folder / 'work'}",
        "model.hidden_dim=8",
        "train.max_steps=1",
        "train.tables.learning_rate=9",
    ]
    parameters = {
        "data_location": str(little_log.parent),
        "hidden_dim": 16,
        "max_steps": 0,
        "tables_learning_rate": 0.05,
    }
    return Compiled(folder, config, overrides, compile_pipeline(load_config(config, overrides)), parameters)


class Compiled:
    """A compiled pipeline, how it came to be, and the parameters with which it does what `finished_run` did."""

    def __init__(
        self,
        folder: Path,
        config: Path,
        overrides: list[str],
        spec: dict[str, Any],
        parameters: dict[str, Any],
    ) -> None:
        self.folder, self.config, self.overrides = folder, config, overrides
        self.spec, self.parameters = spec, parameters

    def options(self, *more: str) -> list[str]:
        """The overrides as options of the command."""
        return [text for override in (*self.overrides, *more) for text in ("--set", override)]
