"""Specification of the weight collapser."""

from mlet_tf.components.weight_collapser import executor
from tfx import types
from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts
from tfx.types.experimental import simple_artifacts


class WeightCollapserSpec(component_spec.ComponentSpec):
    """Inputs, outputs and parameters of `WeightCollapser`."""

    INPUTS = {
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "transform_graph": component_spec.ChannelParameter(type=standard_artifacts.TransformGraph),
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
    }
    OUTPUTS = {
        "collapsed_model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "report": component_spec.ChannelParameter(type=simple_artifacts.Metrics),
    }
    PARAMETERS = {
        "schema": component_spec.ExecutionParameter(type=str),
        "warmup_rows": component_spec.ExecutionParameter(type=int),
        "table_dtype": component_spec.ExecutionParameter(type=str),
        "code_version": component_spec.ExecutionParameter(type=str),
    }


class WeightCollapser(base_component.BaseComponent):
    """Replaces every `W1 @ W2` of a trained model by its product `E`, quantised if `table_dtype` says so.

    It fails the run if a weight is not finite or if collapsed and trained model differ on real rows by more than
    float32 rounding. The gate judges the cost of quantisation.
    """

    SPEC_CLASS = WeightCollapserSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        transform_graph: types.BaseChannel,
        examples: types.BaseChannel,
        schema: str,
        warmup_rows: int,
        table_dtype: str,
        code_version: str,
    ) -> None:
        """Constructs the component.

        Args:
            model: The trained model.
            transform_graph: Preprocessing, to export the collapsed model with.
            examples: Examples; the two models are compared on their `eval` split.
            schema: JSON of `ClickLogSchema.to_dict()`.
            warmup_rows: Rows of the warm-up file inside the exported model.
            table_dtype: `float32`, or the dtype to quantise tables to, see `mlet_tf.quantize_model`.
            code_version: Changes with the code of this component, so that TFX's cache misses.
        """
        super().__init__(
            spec=WeightCollapserSpec(
                model=model,
                transform_graph=transform_graph,
                examples=examples,
                schema=schema,
                warmup_rows=warmup_rows,
                table_dtype=table_dtype,
                code_version=code_version,
                collapsed_model=types.Channel(type=standard_artifacts.Model),
                report=types.Channel(type=simple_artifacts.Metrics),
            )
        )
