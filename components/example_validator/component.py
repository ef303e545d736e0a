"""Specification of the gated example validator."""

from mlet_tf.components.example_validator import executor
from tfx.components import ExampleValidator
from tfx.dsl.components.base import executor_spec


class GatedExampleValidator(ExampleValidator):
    """TFX's ExampleValidator that fails the run on an anomaly.

    It checks each split against the schema, and compares `eval` with `train` (drift) in the columns whose schema has
    a drift comparator.
    """

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)
