"""Fixtures that many tests share: one run of the whole pipeline on generated rows."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "0")  # Some tests import TensorFlow before mlet_tf.

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from scheduling import pytest_collection_modifyitems, pytest_xdist_make_scheduler  # noqa: F401 (hooks)
from tests_support import ROWS

# The same examples in every run, and however busy the machine is.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

CONFIG = """
name: little
data: {schema: criteo, split: {method: hash, eval_share: 0.3}}
vocabulary: {min_count: 2, num_oov_buckets: 2, rare_below: 20}
model: {output_dim: 4, hidden_dim: 16, bottom_units: [16], top_units: [16]}
train:
  batch_size: 128
  epochs: 2
  tables: {name: row_wise_adagrad, learning_rate: 0.05}
  dense: {name: adagrad, learning_rate: 0.05}
gate:
  bounds: {auc: {min: 0.5}, calibration: {min: 0.5, max: 2}}
  slices: [C1]
  frequency_slices: [C3]
  min_slice_rows: 50
serving: {keep: 2, warmup_rows: 4, infra_validation: saved_model}
"""


# Names of a user's own packages that must not get in the way; the first two are those of TFX's project template.
SHADOWING = ("pipeline", "components", "apache_beam", "click", "keras", "numpy", "tensorflow", "tfx", "yaml")


@dataclasses.dataclass
class Run:
    """A finished run of the pipeline."""

    log: Path
    config: Path
    output: Path
    result: dict[str, Any]

    def overrides(self, *more: str) -> list[str]:
        return [f"data.train={self.log}", f"output={self.output}", *more]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # Libraries draw from it.
    if "keras" in sys.modules:
        import keras

        keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def little_log(tmp_path_factory) -> Path:
    """A synthetic log in Criteo's format that a small model learns something from."""
    from mlet_tf.datasets import CRITEO
    from mlet_tf.datasets.synthetic import write_log

    path = tmp_path_factory.mktemp("log") / "train.tsv"
    write_log(path, CRITEO, ROWS, seed=1, rank=2, vocabulary=60, strength=2.5)
    return path


@pytest.fixture(scope="session")
def shadowing_folder(tmp_path_factory) -> Path:
    """A user's folder with packages that have the names of ours and of what we need; importing one of them fails."""
    folder = tmp_path_factory.mktemp("project")
    for name in SHADOWING:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise ImportError('{name} of the current folder')\n")
    return folder


@pytest.fixture(scope="session")
def installed_command(shadowing_folder):
    """Starts the installed `mlet-tf` as a process of its own, where packages lie that it must not import."""

    def start(*arguments: Any, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [Path(sys.executable).with_name("mlet-tf"), *map(str, arguments)],
            cwd=shadowing_folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, little_log, installed_command) -> Run:
    """The whole pipeline, run once for all tests, by the installed command."""
    folder = tmp_path_factory.mktemp("run")
    config = folder / "little.yaml"
    config.write_text(CONFIG)
    run = Run(little_log, config, folder / "output", {})
    options = [text for override in run.overrides() for text in ("--set", override)]
    process = installed_command("run", "--config", config, *options)
    _, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err
    run.result = json.loads((run.output / "run.json").read_text())
    return run


@pytest.fixture
def command(monkeypatch, capfd):
    """Calls `mlet-tf` in this process; returns exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        from mlet_tf.pipeline.cli.main import main

        monkeypatch.setattr(sys, "argv", ["mlet-tf", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of real samples, where the environment names one."""
    folder = os.environ.get("MLET_TF_SAMPLES")
    if not folder:
        pytest.skip("MLET_TF_SAMPLES names no folder with samples of the real data sets")
    return Path(folder)
