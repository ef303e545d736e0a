"""What the Beam executors take from the process that they run in."""

import sys

import apache_beam as beam
import pytest
from mlet_tf.components.click_log_example_gen import executor as example_gen
from mlet_tf.components.evaluator import executor as evaluator
from mlet_tf.components.statistics_gen import executor as statistics_gen
from mlet_tf.components.transform import executor as transform

from mlet_tf.child_processes import safe_path
from mlet_tf.config import BeamConfig


@pytest.mark.parametrize("module", [example_gen, evaluator, statistics_gen, transform])
def test_flags_of_the_program_are_not_tfxs(module, monkeypatch):
    """`pytest -v tests/...` ended with "flag --verbosity=tests/...: invalid literal", `-v` being a flag of absl."""
    arguments = ["pytest", "-v", "tests/e2e", "--alsologtostderr=maybe"]
    monkeypatch.setattr(sys, "argv", arguments)
    context = module.Executor.Context(beam_pipeline_args=BeamConfig().args())
    executor = module.Executor(context)
    assert sys.argv is arguments
    with executor._make_beam_pipeline() as pipeline:
        _ = pipeline | beam.Create([1])


@pytest.mark.slow  # Two more processes that import Beam.
def test_workers_do_not_import_packages_of_the_current_folder(shadowing_folder, monkeypatch):
    monkeypatch.chdir(shadowing_folder)
    with safe_path(), beam.Pipeline(argv=BeamConfig(workers=2).args()) as pipeline:
        _ = pipeline | beam.Create([1, 2]) | beam.Map(str)
