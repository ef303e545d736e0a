"""Specification of StatisticsGen."""

from mlet_tf.components.statistics_gen import executor
from tfx import types
from tfx.components.statistics_gen import component
from tfx.dsl.components.base import executor_spec
from tfx.types import standard_artifacts, standard_component_specs
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter


class StatisticsGenSpec(ComponentSpec):
    """Inputs, outputs and parameters of `StatisticsGen`."""

    INPUTS = {
        standard_component_specs.EXAMPLES_KEY: ChannelParameter(type=standard_artifacts.Examples),
        standard_component_specs.SCHEMA_KEY: ChannelParameter(type=standard_artifacts.Schema),
    }
    OUTPUTS = {
        standard_component_specs.STATISTICS_KEY: ChannelParameter(type=standard_artifacts.ExampleStatistics)
    }
    PARAMETERS = {
        "sample_rate": ExecutionParameter(type=float),
        "min_rows": ExecutionParameter(type=int),
        "code_version": ExecutionParameter(type=str),
    }


class StatisticsGen(component.StatisticsGen):
    """Statistics of the raw columns by tensorflow-data-validation's generators, one Beam element per file.

    Counts of rows, values and missing values, means and extremes are exact for the sample. Distinct values and the
    most frequent ones come from sketches: exact below 16,384 distinct values; see the README for more.

    Component `outputs` contains:
     - `statistics`: Channel of `standard_artifacts.ExampleStatistics`.
    """

    SPEC_CLASS = StatisticsGenSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        examples: types.BaseChannel,
        schema: types.BaseChannel,
        sample_rate: float = 1.0,
        min_rows: int = 100_000,
        code_version: str = "",
    ) -> None:
        """Constructs the component.

        Args:
            examples: Examples of tf.Example in TFRecords.
            schema: Schema of their columns.
            sample_rate: Share of the rows in the sample.
            min_rows: Smallest sample of a split, approximately: a split with fewer rows is used whole.
            code_version: Changes with the code, so that TFX's cache misses.
        """
        super(component.StatisticsGen, self).__init__(
            spec=StatisticsGenSpec(
                examples=examples,
                schema=schema,
                sample_rate=sample_rate,
                min_rows=min_rows,
                code_version=code_version,
                statistics=types.Channel(type=standard_artifacts.ExampleStatistics),
            )
        )
