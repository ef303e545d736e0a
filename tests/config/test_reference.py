"""`mlet-tf config` and the page that is made from the same models."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlet_tf.config import PipelineConfig
from mlet_tf.config.reference import keys
from mlet_tf.config.sweep import SweepConfig

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_reference_page_is_what_the_models_say():
    """Where it is stale: `mlet-tf config --markdown > docs/configuration.md`."""
    from mlet_tf.pipeline.cli.config import page

    assert PAGE.read_text() == page()


def test_the_page_has_every_key():
    text = PAGE.read_text()
    same = (
        "train.projections.",
        "train.dense.",
        "gate.slice_bounds.",
        "kubeflow.nodes.",
    )  # As another group.
    for model in (PipelineConfig, SweepConfig):
        for key in keys(model):
            shown = f"| `{key.path}` |" in text or f"### {key.path.removesuffix('[]')}\n" in text
            assert shown or key.path.startswith(same), key.path


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ["train.batch_size"],
            ["train.batch_size: null", "    An integer from 1 to 100,000,000 or null. Rows a step"],
        ),
        (["train.tables"], ["train.tables:\n", "train.tables.learning_rate: 0.1"]),
        (["gate.bounds.auc"], ["gate.bounds.<name>.min: null"]),
        (["--sweep", "sweep.grid.embedding"], ['sweep.grid[].embedding: ["mlet"]']),
        (
            ["--sweep"],
            [
                "name: (required)",
                "train.batch_size: null",
                "sweep.generated.rows: 500000",
                "sweep.grid[].train.batch_size: []\n    A list of different items, each an integer from 1",
            ],
        ),
        ([], ["name: mlet-tf", "kubeflow.nodes.<name>.cpu: null"]),
    ],
)
def test_the_command_prints_keys(command, arguments, lines):
    code, out, _ = command("config", *arguments)
    assert code == 0
    for line in lines:
        assert line in out


def test_an_unknown_key_is_named_with_the_nearest(command):
    code, _, err = command("config", "train.batchsize")
    assert (code, err) == (2, "Error: unknown key 'train.batchsize'. Did you mean 'train.batch_size'?\n")


def test_reading_a_configuration_needs_nothing_heavy():
    script = "import sys, mlet_tf.config, mlet_tf.config.sweep; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"tensorflow", "keras", "pyarrow", "apache_beam", "tfx", "optuna"}
